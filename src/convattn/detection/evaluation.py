"""Average precision as COCO measures it, by pycocotools: the twelve figures, every class's, the curves."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["box", "mask"]
"""By what a detection is compared with an object: their boxes or their masks."""

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve, in its order: precision over IoU 0.5 to 0.95, at 0.5, at 0.75, of small, medium and large objects;
then the recall with 1, 10 and 100 detections an image, and of small, medium and large objects."""

CURVE_IOUS = (0.5, 0.75)
"""The IoUs whose precision-recall curves are kept."""

ALL_AREAS = 0
"""The place of "objects of every size" in pycocotools' tables."""


@dataclass(frozen=True)
class ClassPrecision:
    """Of one class: AP over IoU 0.5 to 0.95 and AP at 0.5; NaN where no image has such an object."""

    label: int
    objects: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class DetectionScores:
    """What :func:`evaluate_detections` finds.

    ``figures`` are :data:`FIGURES` by name, parts of 1, NaN where there is nothing to measure (no large object).
    ``curves[iou]`` ``[101, K]`` is the precision at a recall of 0, 0.01 to 1 of every class, -1 where undefined.
    """

    figures: dict[str, float]
    per_class: list[ClassPrecision]
    curves: dict[float, np.ndarray]


def evaluate_detections(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Kind = "box"
) -> DetectionScores:
    """Measure detections against objects, as COCO does.

    Args:
        truth: the content of a COCO file; its categories are the classes, in the order of their ids.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score`` and, for
            masks, ``segmentation`` as run lengths.
        kind: what is compared.

    Raises:
        ValueError: a detection of an image or a category that the truth does not have.

    Example:
        >>> box = {"image_id": 7, "category_id": 1, "bbox": [2, 3, 20, 10]}
        >>> truth = {"images": [{"id": 7}], "categories": [{"id": 1, "name": "cat"}],
        ...          "annotations": [{**box, "id": 1, "area": 200, "iscrowd": 0}]}
        >>> scores = evaluate_detections(truth, [{**box, "score": 0.9}])
        >>> round(scores.figures["AP"], 6), scores.figures["APl"]
        (1.0, nan)
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _check(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        objects = COCO()
        objects.dataset = {"info": {}, **_copied(truth)}
        objects.createIndex()
        found = COCO()
        found.dataset = {**objects.dataset, "annotations": _as_annotations(detections, kind)}
        found.createIndex()
        evaluation = COCOeval(objects, found, "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # [IoU, recall, class, area, detections an image]
    per_class = [
        ClassPrecision(
            label,
            sum(1 for one in truth["annotations"] if one["category_id"] == label and not one.get("iscrowd")),
            _mean(precision[:, :, place, ALL_AREAS, -1]),
            _mean(precision[0, :, place, ALL_AREAS, -1]),
        )
        for place, label in enumerate(evaluation.params.catIds)
    ]
    rows = [int(np.argmin(np.abs(evaluation.params.iouThrs - iou))) for iou in CURVE_IOUS]
    return DetectionScores(
        {name: _measured(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)},
        per_class,
        {iou: precision[row, :, :, ALL_AREAS, -1] for iou, row in zip(CURVE_IOUS, rows, strict=True)},
    )


def measure(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kinds: tuple[Kind, ...], seen: Sequence[int]
) -> dict[Kind, DetectionScores]:
    """Return :func:`evaluate_detections` of each kind, on those images of the truth whose ids are ``seen``."""
    kept = set(seen)
    truth = {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in kept],
        "annotations": [one for one in truth["annotations"] if one["image_id"] in kept],
    }
    return {kind: evaluate_detections(truth, detections, kind) for kind in kinds}


def named_figures(scores: Mapping[Kind, DetectionScores]) -> dict[str, float]:
    """Return the figures of all kinds by name, such as ``mask_AP50``."""
    return {f"{kind}_{name}": value for kind, one in scores.items() for name, value in one.figures.items()}


def _check(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> None:
    images = {image["id"] for image in truth["images"]}
    labels = {category["id"] for category in truth["categories"]}
    for one in detections:
        if one["image_id"] not in images:
            raise ValueError(f"a detection is of image {one['image_id']}, which the truth does not have")
        if one["category_id"] not in labels:
            raise ValueError(f"a detection has category {one['category_id']}, the truth has {sorted(labels)}")


def _copied(truth: Mapping[str, Any]) -> dict[str, Any]:
    """Return the truth with annotations that pycocotools may write into."""
    return {**truth, "annotations": [{"iscrowd": 0, **one} for one in truth["annotations"]]}


def _as_annotations(detections: Sequence[Mapping[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Return results as pycocotools' ``loadRes`` makes annotations of them; that one refuses an empty list."""
    if kind == "box":
        areas = [one["bbox"][2] * one["bbox"][3] for one in detections]
    else:
        from pycocotools import mask

        # One at a time: pycocotools' area() of more than 255 masks at once fails under numpy 2.
        areas = [float(mask.area(one["segmentation"])) for one in detections]
    return [
        {**one, "id": place, "area": area, "iscrowd": 0}
        for place, (one, area) in enumerate(zip(detections, areas, strict=True), start=1)
    ]


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")


def _measured(value: float) -> float:
    return float(value) if value > -1 else float("nan")
