"""What a task tells the templates of its page: numbers, charts' lines, tables, bars and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from convattn.report.charts import FIRST, SECOND, LineStyle
from convattn.report.pictures import Picture
from convattn.report.text import percent


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


LOSSES = (Curve("train_loss", "training", SECOND), Curve("val_loss", "validation"))


@dataclass(frozen=True)
class Tile:
    """A number of the page's head."""

    name: str
    value: str
    note: str = ""
    is_main: bool = False


@dataclass(frozen=True)
class Table:
    """Cells under their heading; the caption is read aloud."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Bar:
    """A class as a bar: its part of one, and a note."""

    name: str
    part: float
    note: str


@dataclass(frozen=True)
class ClassBars:
    """The classes that have a figure, the weakest first, and the number of those without."""

    bars: Sequence[Bar]
    absent: int


@dataclass(frozen=True)
class Card:
    """An image of a gallery: its pictures side by side, and what is wrong on it."""

    name: str
    pictures: Sequence[Picture]
    said: str
    more: str = ""
    is_right: bool = False
    layout: Literal["", "wide", "four"] = ""


@dataclass(frozen=True)
class Key:
    """A line of a gallery's legend: CSS, and what it means."""

    name: str
    style: str
    kind: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images, the worst first; those after the first ``in_sight`` open on a click."""

    intro: str
    keys: Sequence[Key]
    cards: Sequence[Card]
    in_sight: int


@dataclass(frozen=True)
class TaskPage:
    """What the page of a run's task shows beside the shared parts.

    Args:
        template: The template of the page.
        score: The column of ``metrics.csv`` by which the best epoch is chosen.
        columns: The columns of the table of all epochs that are parts of one, with their headings.
        charts: The learning curves.
        tiles: The figures of the head.
        validated: The number of validation images.
        content: What the template's own sections show, by its names there.
        predict: What ``convattn predict`` does with this run.
        left_out: What happened to the entries of ``skipped.csv``: "1 file ...".
    """

    template: str
    score: str
    columns: tuple[tuple[str, str], ...]
    charts: tuple[CurvesChart, ...]
    tiles: list[Tile]
    validated: int
    content: Mapping[str, Any] = field(default_factory=dict)
    predict: str = "Recognise your own images"
    left_out: str = "could not be read"


def score_tile(name: str, value: float) -> Tile:
    """Return the main figure of a task that measures whole images."""
    return Tile(name, percent(value), "validation images" if math.isfinite(value) else "not measured yet", is_main=True)
