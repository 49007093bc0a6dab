"""The page of a run that learned to label pixels: IoU by class, confused classes, the worst images."""

import csv
import math

import numpy as np

from convattn.data.segmentation import SegmentationImages
from convattn.report.bars import Bar, bars_html
from convattn.report.charts import FIRST, MUTED, SECOND
from convattn.report.confusion import Confusion, pairs_html
from convattn.report.markup import count, percent, section
from convattn.report.run import Run, parse_number, read_rows
from convattn.report.segmentation_gallery import gallery_html
from convattn.report.task import Curve, CurvesChart, TaskPage, Tile

SCORE = "mean_iou"
LOSS_NOTE = "training: with augmentation; validation: without"

CHARTS = (
    CurvesChart(
        "Loss", (Curve("train_loss", "training", SECOND), Curve("val_loss", "validation", FIRST)), "loss", LOSS_NOTE
    ),
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
    measured = "validation images" if math.isfinite(top) else "not measured yet"
    tiles = [Tile("mean IoU", f"{percent(top)} <small>{measured}</small>", main=True)]
    tiles += [Tile(name, percent(figures.get(key, math.nan))) for key, name in COLUMNS[1:]]
    return TaskPage(
        score=SCORE,
        columns=COLUMNS,
        charts=CHARTS,
        tiles=tiles,
        validated=len(val),
        sections=[
            section("IoU by class", _bars(run), "The weakest first."),
            section("What it confuses", _confusion(run), "Pixels of all validation images."),
            section("Worst cases first", gallery_html(run, val)),
        ],
        predict="Label the pixels of your own images",
        left_out="left out",
    )


def _bars(run: Run) -> str:
    bars, absent = [], 0
    for row in read_rows(run.folder / "per_class.csv"):
        part, right = parse_number(row.get("iou")), parse_number(row.get("accuracy"))
        if not math.isfinite(part):
            absent += 1
            continue
        pixels = count(parse_number(row.get("pixels")))
        found = f"{percent(right, 0)} found" if math.isfinite(right) else "not in the labels"
        note = f"{found} · {pixels} px"
        bars.append(Bar(row.get("class") or "", min(max(part, 0.0), 1.0), note))
    bars.sort(key=lambda bar: bar.part)
    classes = "1 class occurs" if absent == 1 else f"{absent} classes occur"
    without = f'<p class="intro">{classes} neither in the labels nor in the predictions.</p>' if absent and bars else ""
    return bars_html(bars, notes="long", rest="… and {} more") + without


def _confusion(run: Run) -> str:
    counts = _read_counts(run)
    return "" if counts is None or not counts.sum() else pairs_html(Confusion(run.classes, counts), "pixels", digits=1)


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
