"""The page of a run that learned to find objects: COCO's figures, precision and recall, classes, worst images."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from convattn.data.coco import DetectionImages
from convattn.data.names import counted
from convattn.report.charts import MUTED, SECOND, Chart, recall_chart
from convattn.report.classes import class_bars
from convattn.report.detection_gallery import gallery
from convattn.report.matching import Shape, read_detections
from convattn.report.run import Run, parse_number, parse_object, read_text
from convattn.report.task import LOSSES, Curve, CurvesChart, Table, TaskPage, Tile, score_tile
from convattn.report.text import percent

FIGURES = (
    ("AP", "AP", "mean over IoU 0.50, 0.55 … 0.95 and all classes"),
    ("AP50", "AP50", "at IoU 0.50"),
    ("AP75", "AP75", "at IoU 0.75"),
    ("APs", "AP small", "objects below 32² pixels"),
    ("APm", "AP medium", "objects of 32² to 96² pixels"),
    ("APl", "AP large", "objects above 96² pixels"),
    ("AR1", "AR 1", "recall with 1 detection per image"),
    ("AR10", "AR 10", "recall with 10 detections per image"),
    ("AR100", "AR 100", "recall with 100 detections per image"),
    ("ARs", "AR small", "recall of objects below 32² pixels"),
    ("ARm", "AR medium", "recall of objects of 32² to 96² pixels"),
    ("ARl", "AR large", "recall of objects above 96² pixels"),
)
"""COCO's twelve: the column after ``box_`` or ``mask_``, its name and what it measures."""

RECALLS = 101
LINES_LIMIT = 20
"""Up to so many classes each has its line of precision over recall; of more the quartiles are drawn."""

LOSS_NOTE = "training, with augmentation: the sum of the detector's losses"
NAMES: dict[Shape, str] = {"box": "boxes", "mask": "masks"}


def detection_page(run: Run, val: DetectionImages, shape: Shape) -> TaskPage:
    """Return what the page of a detector shows; with ``shape`` "mask" its masks are measured beside its boxes."""
    shapes: tuple[Shape, ...] = ("box",) if shape == "box" else ("mask", "box")
    score = f"{shape}_AP"
    detections = read_detections(run.folder / "detections.json", val)
    return TaskPage(
        template="detection.html",
        score=score,
        columns=tuple((f"{one}_{key}", f"{one} {key}") for one in shapes for key in ("AP", "AP50", "AP75")),
        charts=(
            CurvesChart("Loss", LOSSES[:1], "loss", LOSS_NOTE),
            *(_ap_chart(one) for one in shapes),
        ),
        tiles=_tiles(run, shapes, score),
        validated=len(val),
        content={
            "figures": _figures(run, shapes, score),
            "recalls": _recall_charts(run, shapes),
            "classes": class_bars(run, f"{shape}_AP", lambda row: _note(row, shape)),
            "worst": gallery(detections, run.classes, val, shape),
        },
        predict="Find objects on your own images",
        left_out="left out, whole or in part",
    )


def _ap_chart(shape: Shape) -> CurvesChart:
    curves = (
        Curve(f"{shape}_AP", "AP"),
        Curve(f"{shape}_AP50", "AP50", SECOND, "dashed"),
        Curve(f"{shape}_AP75", "AP75", MUTED, "dotted"),
    )
    return CurvesChart(f"AP of {NAMES[shape]}, %", curves, "percent")


def _tiles(run: Run, shapes: tuple[Shape, ...], score: str) -> list[Tile]:
    figures = run.best_figures(score)
    top = run.number("score", figures.get(score, math.nan))
    tiles = [score_tile(f"AP of {NAMES[shapes[0]]}", top)]
    for shape in shapes:
        lead = "mask " if shape == "mask" else "box " if len(shapes) > 1 else ""
        keys = ("AP50", "AP75") if shape == shapes[0] else ("AP", "AP50", "AP75")
        tiles += [Tile(f"{lead}{key}", percent(figures.get(f"{shape}_{key}", math.nan))) for key in keys]
    return tiles


def _figures(run: Run, shapes: tuple[Shape, ...], score: str) -> Table | None:
    """Return the twelve figures; a dash is a figure without objects to measure."""
    figures = run.best_figures(score)
    if not any(math.isfinite(figures.get(f"{shape}_{key}", math.nan)) for shape in shapes for key, *_ in FIGURES):
        return None
    rows = [
        (name, *(percent(figures.get(f"{shape}_{key}", math.nan)) for shape in shapes), meaning)
        for key, name, meaning in FIGURES
    ]
    head = ("figure", *(NAMES[shape] for shape in shapes), "what it measures")
    return Table("COCO's twelve figures", head, rows)


def _recall_charts(run: Run, shapes: tuple[Shape, ...]) -> list[Chart]:
    content = parse_object(read_text(run.folder / "curves.json"))
    drawn = []
    for shape in shapes:
        by_iou = content.get(shape)
        for iou in ("0.5", "0.75"):
            curves = _precisions(by_iou.get(iou) if isinstance(by_iou, dict) else None)
            if len(curves):
                drawn.append(_recall_chart(curves, f"Precision over recall, {NAMES[shape]} at IoU {iou}"))
    return drawn


def _precisions(content: Any) -> np.ndarray:
    """Return [classes, 101] precisions of the classes that have objects."""
    curves = []
    for values in content.values() if isinstance(content, Mapping) else ():
        whole = isinstance(values, list) and len(values) == RECALLS
        if whole and all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            curves.append(values)
    return np.array(curves, dtype=np.float64).reshape(-1, RECALLS)


def _recall_chart(curves: np.ndarray, title: str) -> Chart:
    mean, band = curves.mean(0), len(curves) > LINES_LIMIT
    others = np.quantile(curves, (0.25, 0.75), axis=0) if band else curves
    said = ", ".join(f"{percent(mean[place])} at recall {place / 100:g}" for place in (0, 25, 50, 75, 100))
    svg = recall_chart(mean, others, band=band, alt=f"{title}. Mean over {counted(len(curves), 'class')}: {said}.")
    note = f"bold: the mean of {counted(len(curves), 'class')}; " + (
        "shaded: the middle half of the classes" if band else "faint: each class"
    )
    return Chart(title, svg, note)


def _note(row: Mapping[str, str | None], shape: Shape) -> str:
    half, objects = parse_number(row.get(f"{shape}_AP50")), parse_number(row.get("objects"))
    number = counted(int(objects), "object") if math.isfinite(objects) else "– objects"
    return f"AP50 {percent(half, 0)} · {number}"
