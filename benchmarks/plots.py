"""Charts of ratios, as SVG that says in its own metadata what it shows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from convattn.publishing import FIRST, GRID, PLAIN, SECOND, drawing, log_scale, to_svg

_COLORS = (FIRST, "#7fb7c9", SECOND, "#8a8a8a", "#5b4b8a", "#3f8f5f")


@dataclass(frozen=True)
class Group:
    """The bars over one place of the axis.

    Args:
        label: below them.
        values: of each series that has one here.
        gate: a solid mark; None for none.
        goal: a dotted mark; None for none.
    """

    label: str
    values: dict[str, float]
    gate: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars of ratios, from 1 up (a loss) or down (a win).

    Args:
        name: of the file, less ``.svg``.
        title: above it.
        y_label: what the ratio is over.
        scale: of the axis.
        groups: in order.
    """

    name: str
    title: str
    y_label: str
    scale: Literal["linear", "log"] = "linear"
    groups: list[Group] = field(default_factory=list)

    @property
    def series(self) -> list[str]:
        """The names of all series, in order of appearance."""
        return list(dict.fromkeys(name for group in self.groups for name in group.values))

    @property
    def description(self) -> str:
        """The data in one line: two charts that show the same have the same."""
        rounded = [[g.label, {name: round(v, 4) for name, v in g.values.items()}, g.gate, g.goal] for g in self.groups]
        return json.dumps([self.title, self.y_label, rounded], ensure_ascii=False)


def draw(chart: Chart) -> str:
    """The chart as SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    with drawing({**PLAIN, "svg.hashsalt": chart.name}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(6.0, 1.6 + 0.95 * len(chart.groups)), 3.8), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(chart.series))
        for number, name in enumerate(chart.series):
            places = [i for i, group in enumerate(chart.groups) if name in group.values]
            heights = [chart.groups[i].values[name] - 1 for i in places]
            x = [i + (number - (len(chart.series) - 1) / 2) * width for i in places]
            axes.bar(x, heights, width * 0.92, bottom=1, label=name, color=_COLORS[number % len(_COLORS)])
        for style, limits in (("-", [g.gate for g in chart.groups]), (":", [g.goal for g in chart.groups])):
            for i, limit in enumerate(limits):
                if limit is not None:
                    label = ("gate" if style == "-" else "goal") if i == 0 else None
                    axes.plot([i - 0.45, i + 0.45], [limit] * 2, style, color="#b00020", linewidth=1.4, label=label)
        axes.axhline(1, color="black", linewidth=0.8)
        if chart.scale == "log":
            log_scale(axes)
        else:
            axes.margins(y=0.1)
        axes.grid(axis="y", **GRID)
        axes.set_ylabel(chart.y_label)
        axes.set_xticks(range(len(chart.groups)), [group.label for group in chart.groups])
        figure.suptitle(chart.title, x=0.01, ha="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2)
        return to_svg(figure, chart.description)
