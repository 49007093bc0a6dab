"""The page of a run that learned to label pixels: IoU by class, confused classes, the worst images."""

import csv
import math
from collections.abc import Mapping

import numpy as np

from convattn.data.segmentation import SegmentationImages
from convattn.report.charts import MUTED, SECOND
from convattn.report.classes import class_bars
from convattn.report.confusion import Confusion, Pairs, most_confused
from convattn.report.run import Run, parse_number
from convattn.report.segmentation_gallery import gallery
from convattn.report.task import LOSSES, Curve, CurvesChart, TaskPage, Tile, score_tile
from convattn.report.text import count, percent

SCORE = "mean_iou"
LOSS_NOTE = "training: with augmentation; validation: without"

CHARTS = (
    CurvesChart("Loss", LOSSES, "loss", LOSS_NOTE),
    CurvesChart(
        "Validation, %",
        (
            Curve(SCORE, "mean IoU"),
            Curve("mean_accuracy", "class accuracy", SECOND, "dashed"),
            Curve("pixel_accuracy", "pixel accuracy", MUTED, "dotted"),
        ),
        "percent",
    ),
)
COLUMNS = ((SCORE, "mean IoU"), ("pixel_accuracy", "pixel accuracy"), ("mean_accuracy", "mean accuracy"))


def segmentation_page(run: Run, val: SegmentationImages) -> TaskPage:
    """Return what the page of a segmentation run shows."""
    figures = run.best_figures(SCORE)
    top = run.number("score", figures.get(SCORE, math.nan))
    tiles = [score_tile("mean IoU", top)]
    tiles += [Tile(name, percent(figures.get(key, math.nan))) for key, name in COLUMNS[1:]]
    return TaskPage(
        template="segmentation.html",
        score=SCORE,
        columns=COLUMNS,
        charts=CHARTS,
        tiles=tiles,
        validated=len(val),
        content={
            "classes": class_bars(run, "iou", _note),
            "confused": _confused(run),
            "worst": gallery(run, val),
        },
        predict="Label the pixels of your own images",
        left_out="left out",
    )


def _note(row: Mapping[str, str | None]) -> str:
    right = parse_number(row.get("accuracy"))
    found = f"{percent(right, 0)} found" if math.isfinite(right) else "not in the labels"
    return f"{found} · {count(parse_number(row.get('pixels')))} px"


def _confused(run: Run) -> Pairs | None:
    counts = _read_counts(run)
    return None if counts is None or not counts.sum() else most_confused(Confusion(run.classes, counts), "pixel", 1)


def _read_counts(run: Run) -> np.ndarray | None:
    """Return the pixel counts of ``confusion.csv``, which may name the classes above and before; None if not whole."""
    path, size = run.folder / "confusion.csv", len(run.classes)
    if not path.is_file() or not size:
        return None
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.reader(line.replace("\0", "") for line in file) if row]
    if len(rows) == size + 1:
        rows = rows[1:]
    cells = [[parse_number(cell) for cell in row[-size:]] for row in rows if len(row) in (size, size + 1)]
    if len(cells) != size or not np.isfinite(cells).all() or np.min(cells) < 0:
        return None
    return np.array(cells).astype(np.int64)
