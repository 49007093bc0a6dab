"""Run folders of detection and segmentation as training leaves them, made of scenes whose truth is spoilt."""

import contextlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn.data.coco import DetectionImages
from convattn.data.masks import encode_mask
from convattn.data.segmentation import IGNORE, SegmentationImages, write_label_map
from convattn.segmentation import MeanIoU
from tests.report.run_folder import write_csv

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
EPOCHS = 6

Result = dict[str, Any]
DetectionTask = Literal["detection", "instances"]


def spoilt_objects(
    val: DetectionImages, *, with_masks: bool, miss: float = 0.15, invent: float = 0.3, seed: int = 0
) -> list[Result]:
    """Return the truth as detections: boxes moved a little, some left out, some of another class, some invented."""
    rng = np.random.default_rng(seed)
    found = []
    for index, entry in enumerate(val.entries):
        masks = val.target(index)["masks"].numpy()
        for one, mask in zip(entry.objects, masks, strict=True):
            if rng.random() < miss:
                continue
            label = one.label if rng.random() < 0.85 else 1 + int(rng.integers(len(val.category_ids)))
            moved = np.array(one.box) + rng.normal(0, 1.5, 4)
            score = float(rng.uniform(0.55, 1))
            found.append(result(val, index, label, moved, score, np.roll(mask, 1, axis=0) if with_masks else None))
        if rng.random() < invent:
            box = np.array([10, 12, 40, 50]) * entry.width / 128
            label = 1 + int(rng.integers(len(val.category_ids)))
            ghost = np.zeros((entry.height, entry.width), np.uint8)
            ghost[14:44, 12:36] = 1
            found.append(result(val, index, label, box, float(rng.uniform(0.1, 0.95)), ghost if with_masks else None))
    return found


def result(
    val: DetectionImages, index: int, label: int, box: Sequence[float], score: float, mask: np.ndarray | None = None
) -> Result:
    """Return a detection in COCO's form."""
    x1, y1, x2, y2 = (float(value) for value in box)
    found: Result = {"image_id": val.entries[index].id, "category_id": val.category_ids[label - 1], "score": score}
    found["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    return found if mask is None else {**found, "segmentation": encode_mask(mask)}


def make_detection_run(
    folder: Path,
    classes: Sequence[str],
    val: DetectionImages,
    results: list[Result],
    *,
    task: DetectionTask = "detection",
) -> None:
    """Write a finished run with these detections, measured by pycocotools."""
    folder.mkdir(parents=True)
    shapes = {"box": "bbox"} if task == "detection" else {"box": "bbox", "mask": "segm"}
    figures: dict[str, float] = {}
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    classes_of: dict[str, list[tuple[float, float]]] = {}
    for shape, kind in shapes.items():
        stats, precision = _evaluate(val, results, kind)
        figures |= {f"{shape}_{key}": value for key, value in zip(KEYS, stats, strict=True)}
        curves[shape] = {
            name: {one: precision[iou, :, label].tolist() for label, one in enumerate(classes)}
            for name, iou in (("0.5", 0), ("0.75", 5))
        }
        classes_of[shape] = [
            (_mean(precision[:, :, label]), _mean(precision[0, :, label])) for label in range(len(classes))
        ]
    (folder / "detections.json").write_text(json.dumps(results))
    (folder / "curves.json").write_text(json.dumps(curves))
    counts = [sum(one.label == label for entry in val.entries for one in entry.objects) for label in range(1, 11)]
    counts += [0] * (len(classes) - len(counts))
    rows = [
        [name, counts[label], *(_cell(value) for shape in shapes for value in classes_of[shape][label])]
        for label, name in enumerate(classes)
    ]
    write_csv(folder / "per_class.csv", "class,objects," + ",".join(f"{s}_AP,{s}_AP50" for s in shapes), rows)
    head = "faster_rcnn" if task == "detection" else "mask_rcnn"
    _write_start(folder, task, head, classes)
    _write_epochs(folder, figures, losses=("train_loss",))
    _write_summary(folder, figures, "box_AP" if task == "detection" else "mask_AP")


def spoilt_labels(val: SegmentationImages, seed: int = 0) -> list[np.ndarray]:
    """Return the label maps with a block moved and, in every second, one class taken for the next."""
    rng = np.random.default_rng(seed)
    maps = []
    for index in range(len(val)):
        labels = val.label_map(index)
        labels = np.where(labels == IGNORE, 0, np.roll(labels, int(rng.integers(0, 4)), axis=1))
        if index % 2:
            labels = np.where(labels == labels.max(), (labels + 1) % val.num_classes, labels)
        maps.append(labels)
    return maps


def make_segmentation_run(
    folder: Path, classes: Sequence[str], val: SegmentationImages, maps: Sequence[np.ndarray]
) -> None:
    """Write a finished run with these label maps."""
    (folder / "predictions").mkdir(parents=True)
    total, rows = MeanIoU(val.num_classes), []
    for index, labels in enumerate(maps):
        one, truth = MeanIoU(val.num_classes), val.label_map(index)
        for metric in (one, total):
            metric.update(torch.from_numpy(labels)[None], torch.from_numpy(truth)[None])
        measured = one.compute()
        rows.append((index, val.name(index), _cell(measured["mean_iou"]), _cell(measured["pixel_accuracy"])))
        write_label_map(folder / "predictions" / f"{index:06}.png", labels)
    write_csv(folder / "predictions.csv", "index,name,mean_iou,pixel_accuracy", rows)
    counts = total.confmat.numpy()
    measured = total.compute()
    per_class = [
        (name, counts[id].sum(), _cell(measured["iou"][id]), _cell(measured["class_accuracy"][id]))
        for id, name in enumerate(classes)
    ]
    write_csv(folder / "per_class.csv", "class,pixels,iou,accuracy", per_class)
    write_csv(folder / "confusion.csv", ",".join(["class", *map(str, range(len(classes)))]),
              [(name, *row) for name, row in zip(classes, counts, strict=True)])  # fmt: skip
    figures = {name: float(measured[name]) for name in ("mean_iou", "pixel_accuracy")}
    figures["mean_accuracy"] = float(measured["class_accuracy"].nanmean())
    _write_start(folder, "segmentation", "semantic_fpn", classes)
    _write_epochs(folder, figures, losses=("train_loss", "val_loss"))
    _write_summary(folder, figures, "mean_iou")


def _evaluate(val: DetectionImages, results: list[Result], kind: str) -> tuple[list[float], np.ndarray]:
    """Return COCO's twelve figures, NaN where there are no objects, and the precisions [IoU, recall, class]."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(val.annotations))
        if not results or not truth.anns:
            return [0.0] * 3 + [math.nan] * 3 + [0.0] * 3 + [math.nan] * 3, np.zeros((10, 101, len(val.category_ids)))
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    return stats, evaluation.eval["precision"][:, :, :, 0, 2]


def _mean(precision: np.ndarray) -> float:
    known = precision[precision >= 0]
    return float(known.mean()) if known.size else math.nan


def _cell(value: Any) -> str:
    return f"{float(value):.6f}" if math.isfinite(float(value)) else ""


def _write_start(folder: Path, task: str, head: str, classes: Sequence[str]) -> None:
    config = f"task: {task}\nmodel: acmix_resnet14\nnetwork:\n  head: {head}\nepochs: {EPOCHS}\n"
    (folder / "config.yaml").write_text(config + "data:\n  embedded: scenes\nseed: 0\n")
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    write_csv(folder / "skipped.csv", "file,reason", [("scenes/broken <1>.png", "the box has no area")])
    write_csv(
        folder / "paths.csv",
        "epoch,depth,layer,alpha,beta",
        [(i + 1, d, f"layer{d}.conv2", 1 - 0.05 * d * i, 1 + 0.06 * (d - 2) * i) for i in range(EPOCHS)
         for d in range(4)],
    )  # fmt: skip


def _write_epochs(folder: Path, figures: dict[str, float], losses: Sequence[str]) -> None:
    curve = [1 - math.exp(-3 * epoch / EPOCHS) for epoch in range(1, EPOCHS)] + [1.0]
    rows = [
        (i + 1, 40 * i + 40, *(2.2 - 1.7 * c for _ in losses), *(_cell(value * c) for value in figures.values()),
         1e-3 * (1 - 0.9 * i / EPOCHS), 20 * i + 20)
        for i, c in enumerate(curve)
    ]  # fmt: skip
    write_csv(folder / "metrics.csv", ",".join(["epoch", "step", *losses, *figures, "lr", "seconds"]), rows)


def _write_summary(folder: Path, figures: dict[str, float], score: str) -> None:
    known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    summary = {"finished": True, "score": known[score], "figures": known, "best_epoch": EPOCHS, "epochs": EPOCHS}
    summary |= {"parameters": 2_345_678, "seconds": 131.0, "weights": "weights.safetensors", "report": None}
    (folder / "summary.json").write_text(json.dumps(summary))
