"""A table or figure as a picture: rings are the paper's numbers, dots and bars ours."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convattn.publishing import STYLE, drawing
from convattn.report.palette import class_colors
from reproduce.entries import ABOUT, Entry, Part
from reproduce.lines import Line
from reproduce.tables import Lines

INK, MUTED, LINE, OURS = "#16202c", "#5b6775", "#dfe4ea", "#2563eb"
LOOK: Any = {
    **STYLE,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
WIDTH, ROW_HEIGHT, DPI = 9.5, 0.24, 110
PANELS = 4
"""At most so many side by side."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title and what draws into it; ``labels`` are those of its rows."""

    title: str
    draw: Callable[[Axes], None]
    labels: Sequence[str] = ()


def draw(entry: Entry, lines: Lines) -> bytes:
    """A PNG with a band for every scale of a table that was run.

    Raises:
        ValueError: none was.
    """
    run = [part for part in entry.parts if any(line.is_run for line in lines[part.scale])]
    if not run:
        raise ValueError(f"{entry.id} has no number of ours to draw: run one of its scales first")
    bands = [(part, _panels(part, lines[part.scale])) for part in run]
    heights = [_height(panels) for _, panels in bands]
    with drawing(LOOK):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.35), dpi=DPI, layout="constrained", facecolor="white")
        figure.suptitle(f"{entry.title}: {entry.caption}", x=0.01, ha="left", fontsize=10.5, wrap=True)
        for (part, panels), band in zip(bands, _bands(figure, heights), strict=True):
            _fill(band, part, panels)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bands(figure: Figure, heights: Sequence[float]) -> list[Any]:
    found: Any = figure.subfigures(len(heights), 1, height_ratios=list(heights), squeeze=False)
    return list(found[:, 0])


def _height(panels: Sequence[Panel]) -> float:
    rows = max((len(panel.labels) for panel in panels), default=0)
    return 1.0 + ROW_HEIGHT * rows if rows else 3.2


def _fill(band: Any, part: Part, panels: Sequence[Panel]) -> None:
    rings = "; rings: published" if part.comparable or part.scale == "speed" else ""
    band.suptitle(f"{part.scale}: {ABOUT[part.scale]}{rings}", x=0.01, ha="left", fontsize=9.5, color=MUTED)
    shared = bool(panels and panels[0].labels)
    all_axes = band.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
    for place, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        axes.set_title(panel.title)
        panel.draw(axes)
        if shared and not place:
            axes.set_yticks(range(len(panel.labels)), [_short(label) for label in panel.labels])
            axes.set_ylim(len(panel.labels) - 0.4, -0.6)
            axes.grid(visible=False, axis="y")
        elif shared:
            axes.grid(visible=False, axis="y")
            axes.tick_params(labelleft=False)


def _short(label: str) -> str:
    return label if len(label) <= 46 else f"{label[:45]}…"


def _panels(part: Part, lines: Sequence[Line]) -> list[Panel]:
    if part.chart == "kernel":
        return [_over_kernels(part, lines)]
    if part.chart in ("epoch", "depth"):
        return [_over(part, quantity.name, lines) for quantity in part.quantities]
    labels = list(dict.fromkeys(line.row for line in lines))
    names = list(dict.fromkeys(line.quantity.name for line in lines))
    if part.scale in ("count", "speed", "full"):
        return [_side_by_side(part, name, labels, lines) for name in names[:PANELS]]
    if part.scale == "photos":
        return [_fits(name, labels, lines) for name in names]
    return _apart(part, names[0], labels, lines)


def _side_by_side(part: Part, name: str, labels: Sequence[str], lines: Sequence[Line]) -> Panel:
    """Published and ours on one axis: they are of one thing."""
    chosen = [line for line in lines if line.quantity.name == name]

    def paint(axes: Axes) -> None:
        for line in chosen:
            place = labels.index(line.row)
            if line.ours is not None and part.scale in ("count", "speed"):
                axes.barh(place, line.ours, 0.55, color=OURS, alpha=0.75)
            elif line.ours is not None:
                axes.plot(line.values, [place] * len(line.values), "o", color=OURS, ms=5)
            _ring(axes, line, place)
        axes.margins(x=0.08)
        if part.scale in ("count", "speed"):
            axes.set_xlim(left=0)

    return Panel(_titled(chosen[0]), paint, labels)


def _ring(axes: Axes, line: Line, place: int) -> None:
    if line.published:
        axes.plot(float(line.published), place, "o", color=INK, fillstyle="none", ms=6.5)


def _apart(part: Part, name: str, labels: Sequence[str], lines: Sequence[Line]) -> list[Panel]:
    """Published and ours on axes of their own: they are of other data."""
    chosen = [(line, labels.index(line.row)) for line in lines if line.quantity.name == name]

    def published(axes: Axes) -> None:
        for line, place in chosen:
            _ring(axes, line, place)
        axes.margins(x=0.1)

    def ours(axes: Axes) -> None:
        _over_seeds(axes, chosen)
        axes.margins(x=0.1)

    first = chosen[0][0]
    found = [Panel(_titled(first, ", published"), published, labels)] if any(one.published for one, _ in chosen) else []
    return [*found, Panel(_titled(first, f", {part.scale}: mean ± deviation, | seeds"), ours, labels)]


def _fits(name: str, labels: Sequence[str], lines: Sequence[Line]) -> Panel:
    """Percentages, all panels on one scale."""
    chosen = [(line, labels.index(line.row)) for line in lines if line.quantity.name == name]

    def paint(axes: Axes) -> None:
        _over_seeds(axes, chosen)
        axes.set_xlim(0, 100)

    return Panel(_titled(chosen[0][0]), paint, labels)


def _over_seeds(axes: Axes, chosen: Sequence[tuple[Line, int]]) -> None:
    """Mean and deviation, and a stroke for every seed."""
    for line, place in chosen:
        if line.ours is not None:
            axes.errorbar(line.ours, place, xerr=line.deviation, fmt="o", color=OURS, ms=6, capsize=3)
            axes.plot(line.values, [place] * len(line.values), "|", color=OURS, alpha=0.6, ms=9)


def _titled(line: Line, more: str = "") -> str:
    unit = f", {line.quantity.unit}" if line.quantity.unit else ""
    return textwrap.fill(f"{line.quantity.name}{unit}{more}", 20 if not more else 80)


def _over_kernels(part: Part, lines: Sequence[Line]) -> Panel:
    places = {row.label: row.x for row in part.rows}
    series: dict[str, list[Line]] = {}
    for line in lines:
        if line.is_run:
            series.setdefault(line.row.partition(",")[0], []).append(line)

    def paint(axes: Axes) -> None:
        for number, (name, of_series) in enumerate(series.items()):
            color = _colors(len(series))[number]
            x = [(places[line.row] or 0) + 0.12 * number for line in of_series]  # apart, so that all bars are seen
            y = [line.ours or 0.0 for line in of_series]
            axes.errorbar(
                x, y, yerr=[line.deviation or 0 for line in of_series], fmt="o-", color=color, label=name, capsize=3
            )
        axes.set_xlabel("kernel size")
        axes.set_xticks(sorted({place for place in places.values() if place is not None}))
        axes.legend()

    return Panel(_titled(lines[0], ": mean ± deviation over the seeds"), paint)


def _over(part: Part, name: str, lines: Sequence[Line]) -> Panel:
    """A quantity: over epochs its mean and deviation, over depths a line for every run."""
    pattern = re.compile(rf"{re.escape(name)} at {part.chart} (\d+)")
    series: dict[str, list[tuple[int, Line]]] = {}
    for line in lines:
        match = pattern.fullmatch(line.quantity.name)
        if match and line.is_run:
            series.setdefault(line.row, []).append((int(match[1]), line))

    def paint(axes: Axes) -> None:
        for color, (label, points) in zip(_colors(len(series)), series.items(), strict=True):
            x = [place for place, _ in points]
            mean = [line.ours or 0.0 for _, line in points]
            if part.chart == "depth":
                _parallel(axes, x, points, color, label)
                continue
            axes.plot(x, mean, "o-", ms=3.5, color=color, label=label)
            low = [value - (line.deviation or 0) for value, (_, line) in zip(mean, points, strict=True)]
            high = [value + (line.deviation or 0) for value, (_, line) in zip(mean, points, strict=True)]
            axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        axes.set_xlabel(part.chart)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name.startswith("log"):
            axes.axhline(0, color=MUTED, lw=1, ls="--")
        if series and name == part.quantities[0].name:
            axes.legend()

    unit = next((line.quantity.unit for line in lines), "")
    return Panel(f"{name}, {unit}" if unit else name, paint)


def _parallel(axes: Axes, x: list[int], points: Sequence[tuple[int, Line]], color: str, label: str) -> None:
    """A line for every run, all of one colour."""
    for seed in range(min(len(line.values) for _, line in points)):
        y = [line.values[seed] for _, line in points]
        axes.plot(x, y, "o-", ms=3, lw=1.2, color=color, alpha=0.8, label=label if not seed else None)


def _colors(n: int) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(n)]
