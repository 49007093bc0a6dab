"""How a run learned: its losses, figures and learning rate over the epochs."""

import math
from collections.abc import Sequence

from convattn.report.charts import Chart, Series, line_chart
from convattn.report.run import EpochRow
from convattn.report.task import CurvesChart, Table, TaskPage
from convattn.report.text import number, percent

_LOSSES = {"train_loss": "training loss", "val_loss": "validation loss"}


def curves(epochs: list[EpochRow], task: TaskPage, best: int | None = None) -> list[Chart]:
    """Return a task's learning curves, the best epoch marked in them."""
    if not epochs:
        return []
    x, lr = [row.epoch for row in epochs], [row.figure("lr") for row in epochs]
    rates = Chart("Learning rate", line_chart([Series("learning rate", x, lr)], alt=_course(lr), mark=best))
    return [*(_chart(chart, epochs, best) for chart in task.charts), rates]


def epochs_table(epochs: list[EpochRow], task: TaskPage, best: int | None = None) -> Table:
    """Return all numbers of the curves."""
    drawn = [curve.column for chart in task.charts for curve in chart.curves]
    losses = [(column, name) for column, name in _LOSSES.items() if column in drawn]
    head = ("epoch", *(name for _, name in (*losses, *task.columns)), "learning rate", "seconds so far")
    rows = [
        (
            f"{row.epoch}, best" if row.epoch == best else row.epoch,
            *(number(row.figure(column)) for column, _ in losses),
            *(percent(row.figure(column), 2) for column, _ in task.columns),
            number(row.figure("lr")),
            number(row.figure("seconds"), 3),
        )
        for row in epochs
    ]
    return Table("Metrics by epoch", head, rows)


def _chart(chart: CurvesChart, epochs: list[EpochRow], best: int | None) -> Chart:
    x, factor = [row.epoch for row in epochs], 100 if chart.unit == "percent" else 1
    values = [[factor * row.figure(curve.column) for row in epochs] for curve in chart.curves]
    series = [
        Series(curve.name, x, y, curve.color, style=curve.style) for curve, y in zip(chart.curves, values, strict=True)
    ]
    scale = "log" if chart.unit == "loss" else "linear"
    svg = line_chart(series, alt=_words(chart, values), y_scale=scale, mark=best)
    return Chart(chart.title, svg, chart.note)


def _words(chart: CurvesChart, values: Sequence[list[float]]) -> str:
    """Say in words how the curves of a chart run."""
    if chart.unit == "percent" and len(chart.curves) == 1:
        return f"In percent: {_course(values[0])}"
    names = [curve.name[0].upper() + curve.name[1:] for curve in chart.curves]
    said = " ".join(f"{name} {_course(y)}" for name, y in zip(names, values, strict=True))
    return said if chart.unit == "loss" else f"{chart.title}: {said}"


def _course(values: list[float]) -> str:
    """Say in words how a curve runs, for those who cannot see it."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "was not measured."
    first, last, low, high = (number(value, 3) for value in (finite[0], finite[-1], min(finite), max(finite)))
    return f"goes from {first} to {last}, lowest {low}, highest {high}."
