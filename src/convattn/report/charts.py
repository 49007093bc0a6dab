"""The report's charts: matplotlib draws them as SVG whose colours are the page's, so that they follow its dark mode."""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convattn.publishing import STYLE, log_scale
from convattn.report.text import visible

LineStyle = Literal["solid", "dashed", "dotted"]

_STAND_INS = {"#0a0b01": "var(--c1)", "#0a0b02": "var(--c2)", "#0a0b03": "var(--muted)", "#0a0b04": "var(--line)"}
"""Colours that matplotlib writes, and the page's variables that replace them."""

FIRST, SECOND, MUTED, LINE = _STAND_INS

_STYLE = {
    **STYLE,
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": MUTED,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.0,
    "legend.labelcolor": MUTED,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Series:
    """A named line of a chart; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = FIRST
    opacity: float = 1.0
    style: LineStyle = "solid"


@dataclass(frozen=True)
class Chart:
    """An ``<svg>`` under its title."""

    title: str
    svg: Markup
    note: str = ""


def line_chart(
    series: Sequence[Series],
    *,
    alt: str,
    x_label: str = "epoch",
    y_scale: Literal["linear", "log"] = "linear",
    zero: bool = False,
    legend: bool = True,
    mark: float | None = None,
) -> Markup:
    """Draw lines over integers (epochs, or depths) as an ``<svg>``; ``zero`` adds a line at zero, ``mark`` one at an x.

    Example:
        >>> chart = line_chart([Series("loss", [0, 1], [2.0, 1.0])], alt="Loss falls from 2 to 1")
        >>> chart.startswith('<svg role="img" aria-label="Loss falls from 2 to 1"')
        True
    """

    def draw(axes: Axes) -> None:
        for one in series:
            y = np.where(np.isfinite(one.y), one.y, np.nan)
            marker = "o" if np.isfinite(y).sum() <= 20 else ""
            axes.plot(one.x, y, color=one.color, alpha=one.opacity, marker=marker, label=one.name, ls=one.style)
        if zero:
            axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if mark is not None and any(np.isfinite(one.y).any() for one in series):
            axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        if y_scale == "log" and any(value > 0 for one in series for value in one.y):
            log_scale(axes)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if legend and len(series) > 1:
            # Three names side by side need all the width that there is.
            room = {} if len(series) < 3 else {"columnspacing": 0.9, "handlelength": 1.5, "handletextpad": 0.4}
            place = (0, 1) if len(series) < 3 else (-0.12, 1)
            axes.legend(loc="lower left", bbox_to_anchor=place, ncols=len(series), borderaxespad=0.2, **room)

    return _svg(draw, alt)


def bars_chart(x: Sequence[int], values: Sequence[float], *, alt: str, x_label: str) -> Markup:
    """Draw bars up and down from zero as an ``<svg>``: above zero in the first colour, below in the second."""

    def draw(axes: Axes) -> None:
        y = np.where(np.isfinite(values), values, 0.0)
        axes.bar(x, y, color=[FIRST if value >= 0 else SECOND for value in y], width=0.7)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(visible=False, axis="x")

    return _svg(draw, alt)


def recall_chart(mean: np.ndarray, others: np.ndarray, *, band: bool, alt: str) -> Markup:
    """Draw precision over recall as an ``<svg>``: the mean in bold over the classes.

    Args:
        mean: [R] precisions at recalls spread evenly from 0 to 1.
        others: [N, R]: with ``band`` the lower and the upper edge of an area, else a faint line each.
        band: Whether the others are the edges of an area.
        alt: What the chart says, in words.

    Example:
        >>> recall_chart(np.ones(3), np.ones((2, 3)), band=True, alt="all right").startswith("<svg")
        True
    """

    def draw(axes: Axes) -> None:
        recall = np.linspace(0, 1, len(mean))
        if band:
            axes.fill_between(recall, others[0], others[1], color=FIRST, alpha=0.2, linewidth=0)
        else:
            axes.plot(recall, others.T, color=FIRST, alpha=0.3, linewidth=1)
        axes.plot(recall, mean, color=FIRST, linewidth=2.6)
        axes.set_xlim(0, 1.02)
        axes.tick_params(axis="x", pad=8)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("recall: part of the objects that were found")
        axes.set_ylabel("precision")

    return _svg(draw, alt)


def reliability_chart(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    parts: Sequence[float],
    *,
    alt: str,
) -> Markup:
    """Draw accuracy over confidence as an ``<svg>``, beside the diagonal of those that are equal.

    Args:
        confidence: mean confidence of each bin that has images.
        accuracy: their accuracy.
        intervals: lower and upper end of the line through each point.
        parts: of the images in every bin, also those that have none; drawn as bars.
        alt: What the chart says, in words.

    Example:
        >>> reliability_chart([0.9], [0.8], [(0.6, 0.95)], [1.0], alt="80 % right at 90 %").startswith("<svg")
        True
    """

    bins = len(parts)

    def draw(axes: Axes) -> None:
        axes.bar((np.arange(bins) + 0.5) / bins, parts, width=0.9 / bins, color=MUTED, alpha=0.25)
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        low, high = zip(*intervals, strict=True)
        axes.vlines(confidence, low, high, color=FIRST, linewidth=1.2, alpha=0.6)
        axes.scatter(confidence, accuracy, s=22, color=FIRST, zorder=3)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.05)
        axes.tick_params(axis="x", pad=8)
        axes.set_xlabel("confidence: the answer's probability")
        axes.set_ylabel("accuracy")

    return _svg(draw, alt)


def _svg(draw: Callable[[Axes], None], alt: str) -> Markup:
    """Run ``draw`` on fresh axes and return the figure as SVG inside HTML."""
    # The salt makes the ids inside the SVG a function of the chart: the same page for the same run, no two alike.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(4.3, 2.7), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;]*;", "", body)
    body = re.sub(r' id="[A-Za-z.\d]+_\d+"', "", body)
    for stand_in, variable in _STAND_INS.items():
        body = body.replace(stand_in, variable)
    said = html.escape(visible(alt))
    return Markup(f'<svg role="img" aria-label="{said}" {view_box.group() if view_box else ""}>{body.strip()}')
