"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images_v2

import convattn.models  # noqa: F401  registers the models with timm
from convattn import segmentation
from convattn.data.dense_transforms import image_transform, segmentation_eval_transform, segmentation_train_transform
from convattn.data.folder import Progress
from convattn.data.pair_layout import find_pair_folders
from convattn.data.segmentation import (
    SegmentationData,
    SegmentationImages,
    open_part,
    open_segmentation,
    write_label_map,
)
from convattn.data.types import SkippedFile, Split
from convattn.data.writing import cell, write_table
from convattn.errors import UserError
from convattn.segmentation import MeanIoU, predict_logits
from convattn.segmentation.segmenter import IGNORE_INDEX
from convattn.tasks.answers import Answer, AnswerOptions, Scores
from convattn.tasks.building import check_backbone, device_of, in_layout, network_settings, refused
from convattn.tasks.config import EvaluationConfig, Recipe
from convattn.tasks.loaders import EvaluationSample, Sample, input_settings
from convattn.tasks.pretrained import whole_weights
from convattn.tasks.run_folder import RunFolder, write_classes
from convattn.tasks.sources import checked, data_folder, data_name
from convattn.tasks.task import InputSize, Objective, Task, percent

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.pictures import LabelPictures
    from convattn.tasks.records import LabelRecords

NAMES = {"mean_iou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}


class SegmentationObjective(Objective):
    """The cross entropy of the pixels, that of the auxiliary head with it; the mIoU over the data set."""

    def __init__(self, recipe: Recipe, classes: Sequence[str]) -> None:
        from torchmetrics import MeanMetric

        super().__init__()
        self.recipe, self.classes = recipe, classes
        self.iou = MeanIoU(len(classes))
        self.by_class: tuple[Mapping[str, Tensor], Tensor]
        self.val_loss = MeanMetric()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum of the losses."""
        images, targets = batch
        return torch.stack(list(model(in_layout(self.recipe, images), targets).values())).sum()

    def update(self, model: nn.Module, batch: list[EvaluationSample]) -> None:
        """Label evaluation images."""
        for sample, logits in labelled(model, batch, self.recipe.evaluation):
            target = sample.target.to(logits.device)
            labels = _labels(logits)
            self.iou.update((_all_wrong(target, len(self.classes)) if labels is None else labels)[None], target[None])
            known = target != IGNORE_INDEX
            if known.any():
                loss = nn.functional.cross_entropy(logits[None], target[None], ignore_index=IGNORE_INDEX)
                self.measure(self.val_loss, loss, int(known.sum()))

    def compute(self) -> dict[str, float]:
        """Return the loss, the mIoU and the accuracies."""
        figures = {"val_loss": float(self.val_loss.compute()), **iou_figures(self.iou)}
        with self.iou.sync_context():  # the counts of all processes
            self.by_class = self.iou.compute(), self.iou.confmat.clone()
        self.val_loss.reset()
        self.iou.reset()
        return figures

    def write(self, run: RunFolder) -> None:
        """Write ``per_class.csv`` and ``confusion.csv``."""
        _write_classes(run, self.classes, *self.by_class)


class SegmentationTask(Task):
    """A class for every pixel; see :class:`convattn.tasks.task.Task`."""

    name = "segmentation"
    figures = ("val_loss", "mean_iou", "pixel_accuracy", "mean_accuracy")
    score = "mean_iou"
    main = ("mean_iou", "mIoU")
    recipes = ("scenes-segmentation", "folder-segmentation")
    heads = ("semantic_fpn", "upernet")
    files = "label PNGs"

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> SegmentationData:
        """Return the folder's pairs, or the embedded scenes.

        Raises:
            BadData: Something is wrong in it, and ``data.bad`` is "refuse".
            UserError: There is no such folder, or a split without images.
        """
        found = open_segmentation(
            data_folder(recipe, progress),
            reduce_zero_label=recipe.data.reduce_zero_label,
            val_fraction=recipe.data.held_out,
            skip_bad=recipe.data.bad == "skip",
            progress=progress,
        )
        return checked(found, data_name(recipe))

    def open_other(
        self, root: Path, classes: list[str], recipe: Recipe, progress: Progress | None = None, split: Split = "val"
    ) -> tuple[list[str], SegmentationImages, list[SkippedFile]]:
        """Return the pairs of a split; the ids are the model's classes where the data names none."""
        reduce = recipe.data.reduce_zero_label
        return open_part(root, classes, split=split, reduce_zero_label=reduce, progress=progress)

    def recognises(self, root: Path) -> str:
        """Return whether there are images with label PNGs."""
        try:
            find_pair_folders(root)
        except UserError:
            return ""
        return "images beside label maps"

    def network(self, recipe: Recipe, classes: int) -> nn.Module:
        """Return the segmenter."""
        head = self.head(recipe)
        check_backbone(recipe)
        with refused(network_settings(recipe, head)), whole_weights(recipe):
            backbone = timm.create_model(
                recipe.model, pretrained=recipe.pretrained, features_only=True, **recipe.model_args
            )
            model: nn.Module = getattr(segmentation, head)(backbone, num_classes=classes, **recipe.network.args)
        return model

    def with_backbone(self, model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Return the segmenter with a changed backbone."""
        model.backbone = change(cast(nn.Module, model.backbone))
        return model

    def statistics(self, recipe: Recipe, model: nn.Module) -> Mapping[str, Any]:
        """Return those that timm has of the backbone."""
        found = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
        return {name: found[name] for name in ("mean", "std")}

    def objective(self, recipe: Recipe, data: SegmentationData) -> SegmentationObjective:
        """Return the cross entropy and the mIoU."""
        return SegmentationObjective(recipe, data.classes)

    def training_sample(self, recipe: Recipe, images: SegmentationImages) -> Sample:
        """Return augmented images with their label maps."""
        _, mean, std, _ = input_settings(recipe)
        return Sample(images.label_map, segmentation_train_transform(mean, std, recipe.segmentation_augment))

    def evaluation_sample(self, recipe: Recipe, images: SegmentationImages, size: InputSize | None = None) -> Sample:
        """Return images with their label maps, normalised, at the size they have on the disk."""
        _, mean, std, _ = input_settings(recipe)
        return Sample(images.label_map, segmentation_eval_transform(mean, std))

    def transform(self, recipe: Recipe, size: InputSize | None = None) -> Callable[[Image.Image], Tensor]:
        """Return an image's pixels, normalised."""
        _, mean, std, _ = input_settings(recipe)
        return image_transform(mean, std)

    def answer(self, model: nn.Module, recipe: Recipe, batch: list[EvaluationSample]) -> list[Answer]:
        """Return the label map, int64 [H, W], of each image; none where the logits are not finite."""
        answers = [Answer(sample.index, skipped=sample.skipped) for sample in batch if sample.image is None]
        for sample, logits in labelled(model, batch, recipe.evaluation):
            labels = _labels(logits)
            answers.append(Answer(sample.index, None if labels is None else labels.cpu().numpy(), sample.target))
        return answers

    def scores(self, images: SegmentationImages, classes: Sequence[str], answers: Iterable[Answer]) -> Scores:
        """Return the mIoU over all images, and the IoU of every class."""
        whole, images_read = _counts(len(classes)), 0
        for one in answers:
            _count(whole, one)
            images_read += 1
        rows = _class_rows(classes, whole.compute(), whole.confmat)
        return Scores(images_read, iou_figures(whole), rows)

    def lines(self, scores: Scores) -> list[str]:
        """Return the mIoU and the accuracies."""
        return ["  ".join(f"{NAMES[name]} {percent(value)}" for name, value in scores.figures.items())]

    def write_results(self, run: RunFolder, data: SegmentationData, answers: Iterable[Answer]) -> dict[str, float]:
        """Write a label map for each image, the figures of each image and of each class, and the confusion.

        An image that the network has no answer on has no label map.
        """
        run.label_maps.mkdir(exist_ok=True)
        whole, rows = _counts(len(data.classes)), []
        for one in answers:
            if one.value is not None:
                write_label_map(run.label_maps / f"{one.index:06}.png", one.value)
            alone = _counts(len(data.classes))
            _count(alone, one)
            _count(whole, one)
            figures = iou_figures(alone)
            cells = (cell(figures[name]) for name in ("mean_iou", "pixel_accuracy"))
            rows.append([one.index, data.val.name(one.index), *cells])
        write_table(run.predictions, ("index", "name", "mean_iou", "pixel_accuracy"), rows)
        _write_classes(run, data.classes, whole.compute(), whole.confmat)
        return iou_figures(whole)

    def as_seen(self, model: nn.Module, recipe: Recipe, image: Tensor) -> Tensor:
        """Return the image at the size at which it is labelled."""
        return _resized(image, recipe.evaluation)

    def takes_any_size(self, recipe: Recipe) -> bool:
        """Return whether an image is labelled whole."""
        return recipe.evaluation.mode == "whole"

    def image_size(self, recipe: Recipe, model: nn.Module) -> str:
        """Return the size of the crops."""
        height, width = recipe.segmentation_augment.crop
        return f"crops of {height}x{width} px"

    def smaller(self, recipe: Recipe) -> str:
        """Return crops of half that size."""
        height, width = recipe.segmentation_augment.crop
        return f"segmentation_augment.crop=[{height // 2},{width // 2}]"

    def pictures(self, loaded: LoadedModel, files: list[Path], out: Path, options: AnswerOptions) -> LabelPictures:
        """Return what draws the classes."""
        from convattn.tasks.pictures import LabelPictures

        return LabelPictures(loaded, out)

    def records(self, loaded: LoadedModel, files: Sequence[Path], options: AnswerOptions) -> LabelRecords:
        """Return the classes by their size."""
        from convattn.tasks.records import LabelRecords

        return LabelRecords(loaded, options)


def labelled(
    model: nn.Module, batch: Sequence[EvaluationSample], wanted: EvaluationConfig
) -> list[tuple[EvaluationSample, Tensor]]:
    """Return the samples that could be read with the logits [K, H, W] of each; equal sizes go through together."""
    by_size: dict[torch.Size, list[EvaluationSample]] = {}
    for sample in batch:
        if sample.image is not None:
            by_size.setdefault(sample.image.shape, []).append(sample)
    found: list[tuple[EvaluationSample, Tensor]] = []
    for samples in by_size.values():
        images = torch.stack([sample.image for sample in samples if sample.image is not None])
        found += zip(samples, label_logits(model, images, wanted), strict=True)
    return sorted(found, key=lambda pair: pair[0].index)


def label_logits(model: nn.Module, images: Tensor, wanted: EvaluationConfig) -> Tensor:
    """Return the logits [B, K, H, W], in fp32, of images [B, 3, H, W], seen as the recipe says."""
    size = (int(images.shape[-2]), int(images.shape[-1]))
    images = _resized(images.to(device_of(model)), wanted)
    return predict_logits(
        model, images, mode=wanted.mode, window=wanted.window, stride=wanted.stride, output_size=size
    ).float()


def _resized(images: Tensor, wanted: EvaluationConfig) -> Tensor:
    if wanted.short_side is None:
        return images
    size = images.shape[-2:]
    scale = min(wanted.short_side / min(size), wanted.max_size / max(size))
    return images_v2.resize(images, [max(1, round(side * scale)) for side in size], antialias=True)


def iou_figures(metric: MeanIoU) -> dict[str, float]:
    """Return what is reported of a metric's counts, parts of 1."""
    result = metric.compute()
    return {
        "mean_iou": float(result["mean_iou"]),
        "pixel_accuracy": float(result["pixel_accuracy"]),
        "mean_accuracy": float(result["class_accuracy"].nanmean()),
    }


def _class_rows(classes: Sequence[str], result: Mapping[str, Tensor], counts: Tensor) -> list[dict[str, Any]]:
    """Return the figures of each class, from what :meth:`MeanIoU.compute` gives and the counts that it is of."""
    figures = (counts.sum(1), result["iou"], result["class_accuracy"])
    each = zip(classes, *(one.tolist() for one in figures), strict=True)
    return [{"class": name, "pixels": size, "iou": iou, "accuracy": right} for name, size, iou, right in each]


def _write_classes(run: RunFolder, classes: Sequence[str], result: Mapping[str, Tensor], counts: Tensor) -> None:
    """Write the figures of each class, and which is taken for which."""
    write_classes(run, _class_rows(classes, result, counts))
    write_table(
        run.confusion, ("class", *classes), [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
    )


def _counts(classes: int) -> MeanIoU:
    """Return empty counts of the main process alone: those that waited for the others would wait for ever."""
    return MeanIoU(classes, sync_on_compute=False)


def _count(metric: MeanIoU, answer: Answer) -> None:
    wrong = answer.value is None
    labels = _all_wrong(answer.target, metric.num_classes) if wrong else torch.from_numpy(answer.value)
    metric.update(labels[None], answer.target[None])


def _labels(logits: Tensor) -> Tensor | None:
    """Return the classes [H, W] of logits [K, H, W]; none where some are not finite."""
    return logits.argmax(0) if logits.isfinite().all() else None


def _all_wrong(target: Tensor, classes: int) -> Tensor:
    """Return a label map in which no pixel has its class."""
    return (target + 1) % classes
