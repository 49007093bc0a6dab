"""Detection and instance segmentation: the boxes of objects, with their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

import convattn.models  # noqa: F401  registers the models with timm
from convattn import detection
from convattn.data.coco import DetectionData, DetectionImages, Target, has_objects, open_coco, open_detection
from convattn.data.coco_file import Wanted
from convattn.data.coco_layout import annotation_files
from convattn.data.dense_transforms import (
    collate_detection,
    detection_eval_transform,
    detection_train_transform,
    image_transform,
)
from convattn.data.folder import Progress
from convattn.data.formats import coco_part, format_of
from convattn.data.masks import encode_mask
from convattn.data.types import SkippedFile, Split
from convattn.data.writing import write_json
from convattn.detection.evaluation import CURVE_IOUS, FIGURES, DetectionScores, Kind, measure, named_figures
from convattn.tasks.answers import Answer, AnswerOptions, Scores
from convattn.tasks.building import check_backbone, device_of, network_settings, refused
from convattn.tasks.config import HeadName, Recipe
from convattn.tasks.loaders import EvaluationSample, Sample
from convattn.tasks.pretrained import whole_weights
from convattn.tasks.processes import gather_objects
from convattn.tasks.run_folder import RunFolder, write_classes
from convattn.tasks.sources import checked, data_folder, data_name
from convattn.tasks.task import InputSize, Objective, Task, percent

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.pictures import ObjectPictures
    from convattn.tasks.records import ObjectRecords

MASK_THRESHOLD = 0.5
"""From which probability on a pixel belongs to an object."""

BOX_HEADS: tuple[HeadName, ...] = ("faster_rcnn", "cascade_rcnn", "retinanet")
MASK_HEADS: tuple[HeadName, ...] = ("mask_rcnn", "cascade_mask_rcnn")


class DetectionObjective(Objective):
    """The sum of a detector's losses, and COCO's twelve figures for each kind.

    Args:
        images: The validation images.
        classes: The names of their classes.
        kinds: What is measured: boxes, or boxes and masks.
    """

    def __init__(self, images: DetectionImages, classes: Sequence[str], kinds: tuple[Kind, ...]) -> None:
        super().__init__()
        self.truth, self.classes, self.kinds = images.coco_dataset(), classes, kinds
        self.scores: dict[Kind, DetectionScores] = {}
        self.found: list[dict[str, Any]] = []
        self.seen: list[int] = []

    def loss(self, model: nn.Module, batch: tuple[list[Tensor], list[Target]]) -> Tensor:
        """Return the sum of the losses."""
        images, targets = batch
        return torch.stack(list(model(images, targets).values())).sum()

    def update(self, model: nn.Module, batch: list[EvaluationSample]) -> None:
        """Detect on evaluation images."""
        for sample, result in _detect(model, batch):
            self.seen.append(int(sample.target["image_id"]))
            if _is_finite(result):
                self.found += as_results(result, self.seen[-1], self.kinds)

    def compute(self) -> dict[str, float]:
        """Return the figures."""
        found, seen = gather_objects(self.found), gather_objects(self.seen)
        self.found, self.seen = [], []
        self.scores = measure(self.truth, found, self.kinds, seen)
        return named_figures(self.scores)

    def write(self, run: RunFolder) -> None:
        """Write ``per_class.csv`` and ``curves.json``."""
        write_tables(run, self.scores, self.classes)


class DetectionTask(Task):
    """Boxes; see :class:`convattn.tasks.task.Task`."""

    name = "detection"
    kinds: tuple[Kind, ...] = ("box",)
    wanted: Wanted = "boxes"
    figures = tuple(f"box_{name}" for name in FIGURES)
    score = "box_AP"
    main = ("box_AP", "box AP")
    recipes = ("scenes-detection", "folder-detection")
    heads = BOX_HEADS
    also_heads = MASK_HEADS
    files = "annotations.json, in COCO's form"
    normalises = False

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> DetectionData:
        """Return the folder's COCO data, or the embedded scenes; a network with masks learns them though boxes count.

        Raises:
            BadData: Something is wrong in it, and ``data.bad`` is "refuse"; or there is no object to learn from.
            UserError: There is no such folder, or a split without images.
        """
        found = open_detection(
            data_folder(recipe, progress),
            wanted="masks" if recipe.network.head in MASK_HEADS else self.wanted,
            val_fraction=recipe.data.held_out,
            skip_bad=recipe.data.bad == "skip",
            progress=progress,
        )
        if recipe.data.without_objects == "drop":
            found = replace(found, train=found.train.with_objects())
        return checked(found, data_name(recipe))

    def open_other(
        self, root: Path, classes: list[str], recipe: Recipe, progress: Progress | None = None, split: Split = "val"
    ) -> tuple[list[str], DetectionImages, list[SkippedFile]]:
        """Return the images of a split; of an annotation file, and of data without a split to validate on, all."""
        return open_coco(coco_part(root, split), wanted=self.wanted, skip_bad=True, progress=progress)

    def recognises(self, root: Path) -> str:
        """Return whether there are COCO annotations."""
        form = format_of(root)
        if form is not None:
            return form.name if form.boxes is not None and form.classes is None else ""
        return "COCO annotations" if _has_annotations(root) else ""

    def remark(self, data: DetectionData) -> str:
        """Return that nothing can be measured where no validation image has an object."""
        if has_objects(data.val):
            return ""
        return "the validation images have no object: nothing can be measured, the last epoch is kept"

    def network(self, recipe: Recipe, classes: int) -> nn.Module:
        """Return the detector."""
        head = self.head(recipe)
        check_backbone(recipe)
        arguments = {"backbone_args": recipe.model_args, "pretrained": recipe.pretrained}
        arguments |= {"image_mean": recipe.data.mean, "image_std": recipe.data.std, **recipe.network.args}
        with refused(network_settings(recipe, head)), whole_weights(recipe):
            return getattr(detection, head)(recipe.model, classes, **arguments)

    def with_backbone(self, model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Return the detector with a changed network below its feature pyramid."""
        features: Any = model.backbone.features  # type: ignore[union-attr]
        features.replace(change(features.net))
        return model

    def example(self, recipe: Recipe) -> list[Tensor]:
        """Return a list of one image."""
        return [torch.zeros(3, *recipe.data.height_and_width)]

    def statistics(self, recipe: Recipe, model: nn.Module) -> Mapping[str, Any]:
        """Return those of the detector's own transform."""
        return {"mean": model.transform.image_mean, "std": model.transform.image_std}

    def objective(self, recipe: Recipe, data: DetectionData) -> DetectionObjective:
        """Return the detector's losses and COCO's figures."""
        return DetectionObjective(data.val, data.classes, self.kinds)

    def training_sample(self, recipe: Recipe, images: DetectionImages) -> Sample:
        """Return augmented images with their objects."""
        return Sample(images.target, detection_train_transform(recipe.detection_augment))

    def evaluation_sample(self, recipe: Recipe, images: DetectionImages, size: InputSize | None = None) -> Sample:
        """Return images with their objects, unchanged."""
        return Sample(images.target, detection_eval_transform())

    def transform(self, recipe: Recipe, size: InputSize | None = None) -> Callable[[Image.Image], Tensor]:
        """Return an image's pixels: detectors normalise and resize themselves."""
        return image_transform()

    def collate(self, batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
        """Return lists: images differ in size."""
        return collate_detection(batch)

    def answer(self, model: nn.Module, recipe: Recipe, batch: list[EvaluationSample]) -> list[Answer]:
        """Return torchvision's result for each image; none where it is not finite."""
        answers = [Answer(sample.index, skipped=sample.skipped) for sample in batch if sample.image is None]
        for sample, result in _detect(model, batch):
            answers.append(Answer(sample.index, result if _is_finite(result) else None, sample.target))
        return answers

    def scores(self, images: DetectionImages, classes: Sequence[str], answers: Iterable[Answer]) -> Scores:
        """Return COCO's twelve figures and the precision of every class."""
        found, seen = self._results(answers)
        scores = measure(images.coco_dataset(), found, self.kinds, seen)
        return Scores(len(seen), named_figures(scores), _class_rows(scores, classes))

    def lines(self, scores: Scores) -> list[str]:
        """Return a line for boxes and one for masks."""
        return [
            f"{kind} " + "  ".join(f"{name} {percent(scores.figures[f'{kind}_{name}'])}" for name in FIGURES)
            for kind in self.kinds
        ]

    def write_results(self, run: RunFolder, data: DetectionData, answers: Iterable[Answer]) -> dict[str, float]:
        """Write ``detections.json``, ``per_class.csv`` and ``curves.json``."""
        found, seen = self._results(answers)
        scores = measure(data.val.coco_dataset(), found, self.kinds, seen)
        write_json(run.detections, in_file_ids(found, data.val), indent=None)
        write_tables(run, scores, data.classes)
        return named_figures(scores)

    def _results(self, answers: Iterable[Answer]) -> tuple[list[dict[str, Any]], list[int]]:
        """Return the answers as COCO results, and the ids of the images."""
        found: list[dict[str, Any]] = []
        seen: list[int] = []
        for one in answers:
            seen.append(int(one.target["image_id"]))
            if one.value is not None:
                found += as_results(one.value, seen[-1], self.kinds)
        return found, seen

    def mirrored(self, model: nn.Module) -> nn.Module:
        """Return a detector that merges the objects of an image and its mirror image."""
        from convattn.tasks.tta import MirroredObjects

        return MirroredObjects(model)

    def describe(self, data: DetectionData) -> dict[str, Any]:
        """Return the annotation file's ids of the classes."""
        return {"category_ids": list(data.train.category_ids)}

    def describe_results(self, run: RunFolder, data: DetectionData) -> dict[str, Any]:
        """Return the score from which on the detections of the validation images give the highest F1, if any hits."""
        from convattn.report.matching import best_threshold, match_image, read_detections

        detections = read_detections(run.detections, data.val)
        if detections is None:
            return {}
        pairs = enumerate(zip(data.val.entries, detections, strict=True))
        threshold, f1 = best_threshold(
            [match_image(place, entry, found, self.kinds[-1]) for place, (entry, found) in pairs]
        )
        return {"min_score": threshold} if f1 else {}

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the backbone: how many boxes there are is known only when the rest runs."""
        return cast(nn.Module, model.backbone)

    def as_seen(self, model: nn.Module, recipe: Recipe, image: Tensor) -> Tensor:
        """Return the image at the size to which the detector resizes it."""
        resized: Tensor = model.transform.resize(image[0])[0]
        return resized[None]

    def image_size(self, recipe: Recipe, model: nn.Module) -> str:
        """Return the sizes that the detector, or else the augmentation, draws from."""
        sides, longest = model.transform.min_size, model.transform.max_size
        if not sides:
            sides, longest = recipe.detection_augment.short_sides, recipe.detection_augment.max_size
        if not sides:
            return "images of their own size"
        shorter = f"{min(sides)}" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}"
        return f"images scaled to a shorter side of {shorter} px, the longer one {longest} at most"

    def smaller(self, recipe: Recipe) -> str:
        """Return half of the shorter side."""
        side = recipe.network.args.get("min_size")
        return f"network.args.min_size={side // 2 if isinstance(side, int) else 320}"

    def pictures(self, loaded: LoadedModel, files: list[Path], out: Path, options: AnswerOptions) -> ObjectPictures:
        """Return what draws the objects."""
        from convattn.tasks.pictures import ObjectPictures

        return ObjectPictures(self.kinds, loaded, files, out, options)

    def records(self, loaded: LoadedModel, files: Sequence[Path], options: AnswerOptions) -> ObjectRecords:
        """Return the objects."""
        from convattn.tasks.records import ObjectRecords

        return ObjectRecords(self.kinds, loaded, files, options)


class InstancesTask(DetectionTask):
    """Boxes and masks."""

    name = "instances"
    kinds = ("box", "mask")
    wanted = "masks"
    figures = tuple(f"{kind}_{name}" for kind in kinds for name in FIGURES)
    score = "mask_AP"
    main = ("mask_AP", "mask AP")
    recipes = ("scenes-instances", "folder-instances")
    heads = MASK_HEADS
    also_heads = ()


@cache
def _has_annotations(root: Path) -> bool:
    """Return whether a file, or one in a folder, has COCO annotations. Cached: the files are large."""
    files = [root] if root.is_file() else annotation_files(root) if root.is_dir() else []
    return any(b'"categories"' in file.read_bytes() for file in files)


@torch.no_grad()
def _detect(
    model: nn.Module, samples: Sequence[EvaluationSample]
) -> Iterator[tuple[EvaluationSample, dict[str, Tensor]]]:
    """Return those samples that could be read, with torchvision's result for each."""
    read = [sample for sample in samples if sample.image is not None]
    device = device_of(model)
    results = model([sample.image.to(device) for sample in read if sample.image is not None]) if read else []
    return zip(read, results, strict=True)


def _is_finite(result: dict[str, Tensor]) -> bool:
    return bool(result["scores"].isfinite().all() and result["boxes"].isfinite().all())


def as_results(result: dict[str, Tensor], image_id: int, kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    """Return one image's detections as COCO results, the categories numbered as the labels."""
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


def in_file_ids(found: Sequence[dict[str, Any]], images: DetectionImages) -> list[dict[str, Any]]:
    """Return results with the category ids of the annotation file, so that they can be compared with it."""
    return [{**one, "category_id": images.category_ids[one["category_id"] - 1]} for one in found]


def _class_rows(scores: Mapping[Kind, DetectionScores], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects, AP and AP50 of each class."""
    rows: list[dict[str, Any]] = [{"class": name} for name in classes]
    for kind, one in scores.items():
        for row, precision in zip(rows, one.per_class, strict=True):
            row |= {"objects": precision.objects, f"{kind}_AP": precision.ap, f"{kind}_AP50": precision.ap50}
    return rows


def write_tables(run: RunFolder, scores: Mapping[Kind, DetectionScores], classes: Sequence[str]) -> None:
    """Write ``per_class.csv``, every class's objects, AP and AP50, and ``curves.json``.

    The curves are, by kind, IoU and class, the precision at 101 recalls from 0 to 1.
    """
    write_classes(run, _class_rows(scores, classes))
    curves = {
        kind: {
            str(iou): {name: one.curves[iou][:, place].round(4).tolist() for place, name in enumerate(classes)}
            for iou in CURVE_IOUS
        }
        for kind, one in scores.items()
    }
    write_json(run.curves, curves, indent=None)
