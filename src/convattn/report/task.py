"""What a task tells the parts of the page that every task shares."""

from dataclasses import dataclass, field
from typing import Literal

from convattn.report.charts import FIRST

LineStyle = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True)
class Curve:
    """A column of ``metrics.csv`` as a line."""

    column: str
    name: str
    color: str = FIRST
    style: LineStyle = "solid"


@dataclass(frozen=True)
class CurvesChart:
    """A chart of the learning curves; losses are drawn on a logarithmic scale, parts of one in percent."""

    title: str
    curves: tuple[Curve, ...]
    unit: Literal["loss", "percent"]
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """A number of the page's head; ``value`` is HTML."""

    name: str
    value: str
    main: bool = False


@dataclass(frozen=True)
class TaskPage:
    """What the page of a run's task shows beside the shared parts.

    Args:
        score: The column of ``metrics.csv`` by which the best epoch is chosen.
        columns: The columns of the table of all epochs that are parts of one, with their headings.
        charts: The learning curves.
        tiles: The figures of the head.
        validated: The number of validation images.
        sections: The HTML of the task's own sections.
        predict: What ``convattn predict`` does with this run.
        left_out: What happened to the entries of ``skipped.csv``: "1 file ...".
    """

    score: str
    columns: tuple[tuple[str, str], ...]
    charts: tuple[CurvesChart, ...]
    tiles: list[Tile]
    validated: int
    sections: list[str] = field(default_factory=list)
    predict: str = "Recognise your own images"
    left_out: str = "could not be read"
