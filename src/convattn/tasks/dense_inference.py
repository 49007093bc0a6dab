"""Use a trained detector or segmenter: find objects on images, label their pixels, measure it on annotated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convattn.data.coco import DetectionImages
from convattn.data.images import ImageError, open_image
from convattn.data.segmentation import SegmentationImages
from convattn.data.types import SkippedFile
from convattn.detection.evaluation import Kind
from convattn.errors import UserError
from convattn.segmentation import MeanIoU
from convattn.tasks.dense_loaders import EvaluationSample, EvaluationSamples, Sample
from convattn.tasks.detection import InstancesTask, as_results, coco_results, evaluation_samples, measure, only_images
from convattn.tasks.inference import LoadedModel
from convattn.tasks.loaders import SkipLog
from convattn.tasks.segmentation import iou_figures, label_logits

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FoundObjects:
    """The objects on an image, best first.

    ``results`` are COCO results whose category ids count the classes from 1; ``boxes`` [N, 4] are x1, y1, x2, y2.
    """

    file: str
    image: Image.Image
    names: list[str]
    scores: list[float]
    boxes: np.ndarray
    results: list[dict[str, Any]]


@dataclass(frozen=True)
class LabelledImage:
    """The class of every pixel of an image, int64 [H, W]."""

    file: str
    image: Image.Image
    labels: np.ndarray


@dataclass(frozen=True)
class DenseScores:
    """The figures of a model on annotated images, by name, those of each class, and the files that were left out."""

    images: int
    figures: dict[str, float]
    per_class: list[dict[str, Any]]
    skipped: list[SkippedFile]


def find_objects(
    loaded: LoadedModel, files: Iterable[str | Path], *, min_score: float = 0.3
) -> Iterator[FoundObjects | SkippedFile]:
    """Yield the objects on each image file in order; a bad file yields a :class:`SkippedFile`."""
    kinds = kinds_of(loaded)
    for place, file in enumerate(files, start=1):
        try:
            image = open_image(file)
        except ImageError as error:
            yield SkippedFile(str(file), error.reason)
            continue
        with torch.inference_mode():
            found = loaded.model([loaded.transform(image).to(loaded.device)])[0]
        _check_finite(loaded, found["scores"])
        kept = {name: value[found["scores"] >= min_score] for name, value in found.items()}
        results = as_results(kept, place, kinds)
        names = [loaded.classes[one["category_id"] - 1] for one in results]
        scores = [one["score"] for one in results]
        yield FoundObjects(str(file), image, names, scores, kept["boxes"].float().cpu().numpy(), results)


def label_images(loaded: LoadedModel, files: Iterable[str | Path]) -> Iterator[LabelledImage | SkippedFile]:
    """Yield the label map of each image file in order; a bad file yields a :class:`SkippedFile`."""
    for file in files:
        try:
            image = open_image(file)
        except ImageError as error:
            yield SkippedFile(str(file), error.reason)
            continue
        logits = label_logits(loaded.model, loaded.transform(image)[None], loaded.evaluation)[0]
        _check_finite(loaded, logits)
        yield LabelledImage(str(file), image, logits.argmax(0).cpu().numpy())


def evaluate_detector(loaded: LoadedModel, images: DetectionImages, *, progress: Progress | None = None) -> DenseScores:
    """Return COCO's twelve figures of a detector on annotated images; those that cannot be read are left out."""
    log = _SkipList()
    found, seen = [], []
    for sample in _each(evaluation_samples(images, log), progress):
        found += coco_results(loaded.model, [sample], kinds_of(loaded))
        seen.append(int(sample.target["image_id"]))
    _check_some(len(seen), log)
    scores = measure(only_images(images.coco_dataset(), seen), found, kinds_of(loaded))
    per_class: list[dict[str, Any]] = [{"class": name} for name in loaded.classes]
    for kind, one in scores.items():
        for row, precision in zip(per_class, one.per_class, strict=True):
            row |= {"objects": precision.objects, f"{kind}_AP": precision.ap, f"{kind}_AP50": precision.ap50}
    figures = {f"{kind}_{name}": value for kind, one in scores.items() for name, value in one.figures.items()}
    return DenseScores(len(seen), figures, per_class, log.files)


def evaluate_segmenter(
    loaded: LoadedModel, images: SegmentationImages, *, progress: Progress | None = None
) -> DenseScores:
    """Return the mIoU of a segmenter over all annotated images; those that cannot be read are left out."""
    log = _SkipList()

    def tensors(image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return loaded.transform(image), torch.from_numpy(labels)

    metric = MeanIoU(len(loaded.classes))
    samples = EvaluationSamples(images, Sample(images.label_map, tensors), log)
    count = 0
    for sample in _each(samples, progress):
        logits = label_logits(loaded.model, sample.image[None], loaded.evaluation)
        metric.update(logits.cpu(), sample.target[None])
        count += 1
    _check_some(count, log)
    result = metric.compute()
    counts = metric.confmat.sum(1).tolist()
    each = zip(loaded.classes, counts, result["iou"].tolist(), result["class_accuracy"].tolist(), strict=True)
    per_class = [{"class": name, "pixels": pixels, "iou": iou, "accuracy": right} for name, pixels, iou, right in each]
    return DenseScores(count, iou_figures(metric), per_class, log.files)


def kinds_of(loaded: LoadedModel) -> tuple[Kind, ...]:
    """Return what a loaded detector gives."""
    return InstancesTask.kinds if loaded.task == "instances" else ("box",)


class _SkipList(SkipLog):
    """Keeps the skipped files in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[SkippedFile] = []

    def add(self, name: str, reason: str) -> None:
        """Add a file."""
        self.files.append(SkippedFile(name, reason))


def _each(samples: EvaluationSamples, progress: Progress | None) -> Iterator[EvaluationSample]:
    """Yield the samples that can be read."""
    for index in range(len(samples)):
        sample = samples[index]
        if sample.image is not None:
            yield sample
        if progress is not None:
            progress(index + 1, len(samples))


def _check_some(count: int, log: _SkipList) -> None:
    if not count:
        first = f"; the first: {log.files[0].path}: {log.files[0].reason}" if log.files else ""
        raise UserError(f"none of the images can be read{first}")


def _check_finite(loaded: LoadedModel, values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{loaded.source}: the model's output is not finite, its training diverged; "
            "train again with a lower learning rate"
        )
