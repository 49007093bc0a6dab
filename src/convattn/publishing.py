"""How pages show numbers: one form of Markdown table, one interval, one look of matplotlib's charts."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from convattn.errors import needing

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
"""What all charts have in common."""

PLAIN: dict[str, Any] = {**STYLE, "font.family": "sans-serif", "font.size": 10}
"""Charts on a white page of the documentation."""

FIRST, SECOND = "#1f6f8b", "#c97b3d"
GRID: dict[str, Any] = {"visible": True, "color": "#dddddd", "linewidth": 0.8}


def cell(text: str) -> str:
    """Return text that cannot break a table.

    Example:
        >>> cell("a|b")
        'a\\\\|b'
    """
    return text.replace("|", "\\|").replace("\n", " ")


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], align: Literal["left", "numbers"] = "left"
) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        head: the headings.
        rows: the cells of every row; pipes and line breaks in them are made harmless.
        align: ``"numbers"`` sets all columns but the first to the right.

    Example:
        >>> markdown_table(["a", "b"], [["1", "2"]])
        ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    rules = ["---", *["---:" if align == "numbers" else "---"] * (len(head) - 1)]
    lines = [list(map(cell, head)), rules, *(list(map(cell, row)) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy.

    Example:
        >>> [round(end, 3) for end in wilson_interval(9, 12)]
        [0.468, 0.911]
    """
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@contextmanager
def drawing(style: Any) -> Iterator[None]:
    """Hold matplotlib to a style.

    Raises:
        UserError: it is not installed.
    """
    with needing("train", "charts need matplotlib"):
        import matplotlib
    with matplotlib.rc_context(style):
        yield


def log_scale(axes: Any) -> None:
    """Give a chart's y axis a logarithmic scale with ticks at 1, 2 and 5 of each power, written plainly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def to_svg(figure: Any, description: str) -> str:
    """Return a figure as SVG that is the same for the same data, and says in its metadata what it shows."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Description": description})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def description_of(svg: str) -> str | None:
    """Return what a chart of :func:`to_svg` says that it shows, or None where it says nothing."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    return html.unescape(found[1]) if found else None
