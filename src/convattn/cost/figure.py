"""Figure 4 of ACmix without the accuracies: parameters over multiply-adds, published beside counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from convattn.cost.table import Row
from convattn.publishing import FIRST, GRID, PLAIN, SECOND, drawing, to_svg

SALT = {"svg.hashsalt": "convattn-cost"}


def describe(rows: Sequence[Row]) -> str:
    """The data in one line: two figures that show the same have the same."""
    return json.dumps([_values(row) for row in rows])


def _values(row: Row) -> list[Any]:
    published = None if row.published is None else [float(row.published.parameters), float(row.published.macs)]
    return [row.model, round(row.cost.parameters / 1e6, 3), round(row.cost.macs / 1e9, 3), published]


def draw(rows: Sequence[Row]) -> str:
    """Two panels as SVG, parameters and multiply-adds: a bar for every network, a ring where a paper puts it.

    Args:
        rows: at least one.

    Raises:
        UserError: matplotlib is not installed.
    """
    values = [_values(row) for row in rows]
    with drawing({**PLAIN, **SALT}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.4 + 0.26 * len(values)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, column, heading in zip(panels, (1, 2), ("parameters, M", "multiply-adds, G"), strict=True):
            for place, value in enumerate(values):
                color = FIRST if "acmix" in value[0] else SECOND
                panel.barh(place, value[column], 0.7, color=color, alpha=0.85)
                if value[3] is not None:
                    panel.plot(value[3][column - 1], place, "o", color="black", fillstyle="none", markersize=6)
            panel.grid(axis="x", **GRID)
            panel.set_xlabel(heading)
        panels[0].set_yticks(range(len(values)), [value[0] for value in values])
        panels[0].set_ylim(len(values) - 0.4, -0.6)
        shown = "Counted (bars) and published (rings)" if any(row.published for row in rows) else "Counted"
        figure.suptitle(f"{shown}, {rows[0].size[0]}×{rows[0].size[1]}", x=0.01, ha="left")
        return to_svg(figure, describe(rows))
