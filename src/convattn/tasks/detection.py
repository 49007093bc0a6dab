"""Detection and instance segmentation: what trains a detector, measures it as COCO does and keeps its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import convattn.models  # noqa: F401  registers the models with timm
from convattn import detection
from convattn.data.coco import DetectionData, DetectionImages, Target
from convattn.data.coco_file import Wanted
from convattn.data.dense_transforms import collate_detection, detection_eval_transform, detection_train_transform
from convattn.data.folder import Progress
from convattn.data.masks import encode_mask
from convattn.data.sampler import GlobalBatchSampler
from convattn.detection.evaluation import CURVE_IOUS, FIGURES, DetectionScores, Kind, evaluate_detections
from convattn.errors import UserError
from convattn.report import write_report
from convattn.report.matching import best_threshold, match_image, read_detections
from convattn.tasks.building import REFUSALS, check_backbone, first_line, with_statistics
from convattn.tasks.config import HeadName, Recipe
from convattn.tasks.dense_data import open_detection_data
from convattn.tasks.dense_loaders import (
    DenseModule,
    EvaluationSample,
    EvaluationSamples,
    Sample,
    TrainingSamples,
    evaluation_samples_loader,
    gather_objects,
    training_samples_loader,
)
from convattn.tasks.hub import at_hand
from convattn.tasks.loaders import Shard, SkipLog
from convattn.tasks.module import TrainingModule
from convattn.tasks.randomness import share_sampling
from convattn.tasks.run_folder import RunFolder, write_json, write_table

MASK_THRESHOLD = 0.5
"""From which probability on a pixel belongs to an object."""

BOX_HEADS: tuple[HeadName, ...] = ("faster_rcnn", "cascade_rcnn", "retinanet")
MASK_HEADS: tuple[HeadName, ...] = ("mask_rcnn", "cascade_mask_rcnn")


def build_detector(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's detector for that many classes, freshly made.

    Raises:
        UserError: an unknown backbone or head, options that they do not take, or a backbone that cannot stand under
            a pyramid.

    Example:
        >>> from convattn.tasks.config import NetworkConfig
        >>> small = NetworkConfig("retinanet", {"channels": 16})
        >>> build_detector(Recipe("conv_resnet14", task="detection", network=small), classes=3).num_classes
        3
    """
    heads = MASK_HEADS if recipe.task == "instances" else BOX_HEADS
    head = recipe.network.head or heads[0]
    if head not in heads and not (recipe.task == "detection" and head in MASK_HEADS):
        raise UserError(f"network.head {head} does not do {recipe.task}: take one of {', '.join(heads)}")
    check_backbone(recipe)
    arguments = {"backbone_args": recipe.model_args, "pretrained": recipe.pretrained}
    arguments |= {"image_mean": recipe.data.mean, "image_std": recipe.data.std, **recipe.network.args}
    try:
        with at_hand(recipe):
            return getattr(detection, head)(recipe.model, classes, **arguments)
    except REFUSALS as error:
        raise UserError(
            f"{head} on {recipe.model} with network.args {recipe.network.args} and model_args {recipe.model_args}:"
            f" {first_line(error)}"
        ) from error


class DetectionModule(DenseModule):
    """Trains a detector of :mod:`convattn.detection`; see :class:`TrainingModule`.

    Args:
        model: The detector.
        recipe: The run's settings.
        truth: The validation images, as the content of a COCO file.
        classes: The names of its categories.
        kinds: What is measured: boxes, or boxes and masks.
        batches_per_epoch: The number of global batches in an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        truth: dict[str, Any],
        classes: Sequence[str],
        kinds: tuple[Kind, ...],
        batches_per_epoch: int,
    ) -> None:
        super().__init__(model, recipe, batches_per_epoch=batches_per_epoch)
        self.truth, self.classes, self.kinds = truth, classes, kinds
        self.scores: dict[Kind, DetectionScores] = {}
        self.found: list[dict[str, Any]] = []
        self.seen: list[int] = []

    def setup(self, stage: str) -> None:
        """Learn how many processes there are."""
        super().setup(stage)
        share_sampling(self.trained, rank=self.global_rank, world=self.trainer.world_size)

    def loss(self, batch: tuple[list[Tensor], list[Target]]) -> Tensor:
        """Return the sum of the detector's losses."""
        images, targets = batch
        losses = self.trained(images, targets)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: list[EvaluationSample], batch_idx: int) -> None:
        """Detect on the validation images."""
        read = [sample for sample in batch if sample.image is not None]
        self.seen += [int(sample.target["image_id"]) for sample in read]
        self.found += coco_results(self.model, read, self.kinds)

    def validation_result(self) -> dict[str, float]:
        """Return COCO's twelve figures for each kind."""
        found, seen = gather_objects(self.found), gather_objects(self.seen)
        self.found, self.seen = [], []
        self.scores = measure(only_images(self.truth, seen), found, self.kinds)
        return named_figures(self.scores)

    def write_measured(self, run: RunFolder) -> None:
        """Write ``per_class.csv`` and ``curves.json``."""
        write_per_class(run, self.scores, self.classes)
        write_curves(run, self.scores, self.classes)


class DetectionTask:
    """Boxes; see :class:`convattn.tasks.task.Task`."""

    kinds: tuple[Kind, ...] = ("box",)
    wanted: Wanted = "boxes"
    figures = tuple(f"box_{name}" for name in FIGURES)
    score = "box_AP"

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> DetectionData:
        """Return the folder's COCO data, or the embedded scenes."""
        return open_detection_data(recipe, self.wanted_for(recipe), progress)

    def wanted_for(self, recipe: Recipe) -> Wanted:
        """Return what has to be known of an object; a network with masks learns them though boxes are asked for."""
        return "masks" if recipe.network.head in MASK_HEADS else self.wanted

    def build(self, recipe: Recipe, data: DetectionData) -> tuple[nn.Module, Recipe]:
        """Return the detector, and the recipe with the statistics of its inputs."""
        model = build_detector(recipe, len(data.classes))
        try_detector(recipe, model)
        return model, with_statistics(recipe, {"mean": model.transform.image_mean, "std": model.transform.image_std})

    def module(self, model: nn.Module, recipe: Recipe, data: DetectionData, batches_per_epoch: int) -> TrainingModule:
        """Return what trains it."""
        return DetectionModule(
            model,
            recipe,
            truth=data.val.coco_dataset(),
            classes=data.classes,
            kinds=self.kinds,
            batches_per_epoch=batches_per_epoch,
        )

    def training_loader(
        self, recipe: Recipe, data: DetectionData, sampler: GlobalBatchSampler, skip_log: SkipLog
    ) -> DataLoader[Any]:
        """Return the augmented training batches."""
        sample = Sample(data.train.target, detection_train_transform(recipe.detection_augment))
        samples = TrainingSamples(data.train, sample, recipe.seed, skip_log)
        return training_samples_loader(recipe, samples, sampler, collate_detection)

    def evaluation_loader(
        self, recipe: Recipe, data: DetectionData, skip_log: SkipLog, shard: Shard | None = None
    ) -> DataLoader[Any]:
        """Return the validation images."""
        return evaluation_samples_loader(recipe, evaluation_samples(data.val, skip_log), shard)

    def write_results(
        self, run: RunFolder, recipe: Recipe, data: DetectionData, model: nn.Module, skip_log: SkipLog
    ) -> dict[str, float]:
        """Write ``detections.json``, ``per_class.csv`` and ``curves.json``."""
        found, seen = [], []
        model.eval()
        for batch in self.evaluation_loader(recipe, data, skip_log):
            read = [sample for sample in batch if sample.image is not None]
            seen += [int(sample.target["image_id"]) for sample in read]
            found += coco_results(model, read, self.kinds)
        if not seen:
            raise UserError("none of the validation images can be read any more: see skipped.csv in the run folder")
        scores = measure(only_images(data.val.coco_dataset(), seen), found, self.kinds)
        write_json(run.detections, in_file_ids(found, data.val), indent=None)
        write_per_class(run, scores, data.classes)
        write_curves(run, scores, data.classes)
        return named_figures(scores)

    def describe(self, data: DetectionData) -> dict[str, Any]:
        """Return the annotation file's ids of the classes."""
        return {"category_ids": list(data.train.category_ids)}

    def describe_results(self, run: RunFolder, data: DetectionData) -> dict[str, Any]:
        """Return the score from which on the detections of the validation images give the highest F1, if any hits."""
        detections = read_detections(run.detections, data.val)
        if detections is None:
            return {}
        pairs = enumerate(zip(data.val.entries, detections, strict=True))
        threshold, f1 = best_threshold(
            [match_image(place, entry, found, self.kinds[-1]) for place, (entry, found) in pairs]
        )
        return {"min_score": threshold} if f1 else {}

    def main_figure(self, figures: dict[str, float]) -> tuple[str, float]:
        """Return the AP of boxes or masks."""
        return f"{self.kinds[-1]} AP", figures[self.score]

    def write_report(self, run: RunFolder, data: DetectionData) -> str:
        """Write the page and return its name."""
        return write_report(run.path, data.val).name


class InstancesTask(DetectionTask):
    """Boxes and masks."""

    kinds = ("box", "mask")
    wanted = "masks"
    figures = tuple(f"{kind}_{name}" for kind in kinds for name in FIGURES)
    score = "mask_AP"


def evaluation_samples(images: DetectionImages, skip_log: SkipLog) -> EvaluationSamples:
    """Return images with their objects, as they lie on the disk."""
    return EvaluationSamples(images, Sample(images.target, detection_eval_transform()), skip_log)


def try_detector(recipe: Recipe, model: nn.Module) -> None:
    """Raise unless the detector takes an image of the recipe's size."""
    size, training = recipe.data.image_size, model.training
    try:
        with torch.no_grad():
            model.eval()([torch.zeros(3, size, size)])
    except REFUSALS as error:
        raise UserError(
            f"{recipe.network.head or 'the detector'} on {recipe.model} cannot take images of {size}x{size} ({error}):"
            " set data.image_size to their size, or the backbone's own argument, such as model_args.img_size"
        ) from error
    finally:
        model.train(training)


@torch.no_grad()
def coco_results(
    model: nn.Module, samples: Sequence[EvaluationSample], kinds: tuple[Kind, ...]
) -> list[dict[str, Any]]:
    """Return a detector's results on some images as COCO results, the categories numbered as the labels."""
    if not samples:
        return []
    device = next(model.parameters()).device
    found = []
    for sample, result in zip(samples, model([sample.image.to(device) for sample in samples]), strict=True):
        found += as_results(result, int(sample.target["image_id"]), kinds)
    return found


def as_results(result: dict[str, Tensor], image_id: int, kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    """Return one image's detections as COCO results."""
    boxes = result["boxes"].float().cpu()
    corners_and_sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    rows = [
        {"image_id": image_id, "category_id": label, "bbox": [round(side, 3) for side in box], "score": score}
        for box, label, score in zip(
            corners_and_sizes, result["labels"].tolist(), result["scores"].float().tolist(), strict=True
        )
    ]
    if "mask" in kinds:
        masks = (result["masks"][:, 0] >= MASK_THRESHOLD).cpu().numpy()
        for row, mask in zip(rows, masks, strict=True):
            row["segmentation"] = encode_mask(mask)
    return rows


def measure(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], kinds: tuple[Kind, ...]
) -> dict[Kind, DetectionScores]:
    """Return the scores of each kind."""
    return {kind: evaluate_detections(truth, found, kind) for kind in kinds}


def named_figures(scores: dict[Kind, DetectionScores]) -> dict[str, float]:
    """Return the figures of all kinds by name, such as ``mask_AP50``."""
    return {f"{kind}_{name}": value for kind, one in scores.items() for name, value in one.figures.items()}


def only_images(truth: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return the truth of some images, those that could be read."""
    kept = set(ids)
    return {
        **truth,
        "images": [image for image in truth["images"] if image["id"] in kept],
        "annotations": [one for one in truth["annotations"] if one["image_id"] in kept],
    }


def in_file_ids(found: Sequence[dict[str, Any]], images: DetectionImages) -> list[dict[str, Any]]:
    """Return results with the category ids of the annotation file, so that they can be compared with it."""
    return [{**one, "category_id": images.category_ids[one["category_id"] - 1]} for one in found]


def write_per_class(run: RunFolder, scores: dict[Kind, DetectionScores], classes: Sequence[str]) -> None:
    """Write ``per_class.csv``: every class's objects, AP and AP50."""
    columns = ["class", "objects", *(f"{kind}_{name}" for kind in scores for name in ("AP", "AP50"))]
    rows = []
    for place, name in enumerate(classes):
        each = [one.per_class[place] for one in scores.values()]
        figures = [number for one in each for number in (one.ap, one.ap50)]
        rows.append([name, each[0].objects, *("" if math.isnan(number) else round(number, 6) for number in figures)])
    write_table(run.per_class, columns, rows)


def write_curves(run: RunFolder, scores: dict[Kind, DetectionScores], classes: Sequence[str]) -> None:
    """Write ``curves.json``: by kind, IoU and class the precision at 101 recalls from 0 to 1."""
    content = {
        kind: {
            str(iou): {name: one.curves[iou][:, place].round(4).tolist() for place, name in enumerate(classes)}
            for iou in CURVE_IOUS
        }
        for kind, one in scores.items()
    }
    write_json(run.curves, content, indent=None)
