"""Semantic segmentation: what trains a segmenter, measures its mIoU over the data set and keeps its label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchvision.transforms.v2 import functional as images_v2

import convattn.models  # noqa: F401  registers the models with timm
from convattn import segmentation
from convattn.data.dense_transforms import segmentation_eval_transform, segmentation_train_transform
from convattn.data.folder import Progress
from convattn.data.sampler import GlobalBatchSampler
from convattn.data.segmentation import SegmentationData, SegmentationImages, write_label_map
from convattn.errors import UserError
from convattn.report import write_report
from convattn.segmentation import MeanIoU, predict_logits
from convattn.segmentation.segmenter import IGNORE_INDEX
from convattn.tasks.building import REFUSALS, check_backbone, first_line, with_statistics
from convattn.tasks.config import EvaluationConfig, HeadName, Recipe
from convattn.tasks.dense_data import open_segmentation_data
from convattn.tasks.dense_loaders import (
    DenseModule,
    EvaluationSample,
    EvaluationSamples,
    Sample,
    TrainingSamples,
    evaluation_samples_loader,
    stack_pairs,
    training_samples_loader,
)
from convattn.tasks.hub import at_hand
from convattn.tasks.loaders import Shard, SkipLog, input_settings
from convattn.tasks.module import TrainingModule
from convattn.tasks.run_folder import RunFolder, write_table

HEADS: tuple[HeadName, ...] = ("semantic_fpn", "upernet")

FIGURES = ("val_loss", "mean_iou", "pixel_accuracy", "mean_accuracy")


def build_segmenter(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's segmenter for that many classes, freshly made.

    Raises:
        UserError: an unknown backbone or head, options that they do not take, or a backbone without feature maps.

    Example:
        >>> from convattn.tasks.config import NetworkConfig
        >>> small = NetworkConfig("upernet", {"channels": 16})
        >>> build_segmenter(Recipe("conv_resnet14", task="segmentation", network=small), classes=3).num_classes
        3
    """
    head = recipe.network.head or HEADS[0]
    if head not in HEADS:
        raise UserError(f"network.head {head} does not do segmentation: take one of {', '.join(HEADS)}")
    check_backbone(recipe)
    try:
        with at_hand(recipe):
            backbone = timm.create_model(
                recipe.model, pretrained=recipe.pretrained, features_only=True, **recipe.model_args
            )
        model: nn.Module = getattr(segmentation, head)(backbone, num_classes=classes, **recipe.network.args)
    except REFUSALS as error:
        raise UserError(
            f"{head} on {recipe.model} with network.args {recipe.network.args} and model_args {recipe.model_args}:"
            f" {first_line(error)}"
        ) from error
    return model


class SegmentationModule(DenseModule):
    """Trains a segmenter of :mod:`convattn.segmentation`; see :class:`convattn.tasks.module.TrainingModule`."""

    def __init__(self, model: nn.Module, recipe: Recipe, *, classes: Sequence[str], batches_per_epoch: int) -> None:
        super().__init__(model, recipe, batches_per_epoch=batches_per_epoch)
        self.classes = classes
        self.iou = MeanIoU(len(classes))
        self.by_class: dict[str, Tensor] = {}
        self.val_loss = MeanMetric()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross entropy of the pixels, that of the auxiliary head with it."""
        images, targets = batch
        return torch.stack(list(self.trained(self.in_layout(images), targets).values())).sum()

    def validation_step(self, batch: list[EvaluationSample], batch_idx: int) -> None:
        """Label the validation images."""
        for sample, logits in labelled(self.model, batch, self.recipe.evaluation):
            target = sample.target.to(logits.device)
            self.iou.update(logits[None], target[None])
            known = target != IGNORE_INDEX
            if known.any():
                loss = nn.functional.cross_entropy(logits[None], target[None], ignore_index=IGNORE_INDEX)
                self.measure(self.val_loss, loss, int(known.sum()))

    def validation_result(self) -> dict[str, float]:
        """Return the loss, the mIoU and the accuracies."""
        figures = {"val_loss": float(self.val_loss.compute()), **iou_figures(self.iou)}
        with self.iou.sync_context():  # the counts of all processes
            self.by_class = {**self.iou.compute(), "counts": self.iou.confmat.cpu()}
        self.val_loss.reset()
        self.iou.reset()
        return figures

    def write_measured(self, run: RunFolder) -> None:
        """Write ``per_class.csv`` and ``confusion.csv``."""
        _write_classes(run, self.by_class, self.classes)


class SegmentationTask:
    """A class for every pixel; see :class:`convattn.tasks.task.Task`."""

    figures = FIGURES
    score = "mean_iou"

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> SegmentationData:
        """Return the folder's pairs, or the embedded scenes."""
        return open_segmentation_data(recipe, progress)

    def build(self, recipe: Recipe, data: SegmentationData) -> tuple[nn.Module, Recipe]:
        """Return the segmenter, and the recipe with the statistics of its inputs."""
        model = build_segmenter(recipe, len(data.classes))
        _try(recipe, model)
        theirs = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(recipe.model).to_dict())
        return model, with_statistics(recipe, theirs)

    def module(
        self, model: nn.Module, recipe: Recipe, data: SegmentationData, batches_per_epoch: int
    ) -> TrainingModule:
        """Return what trains it."""
        return SegmentationModule(model, recipe, classes=data.classes, batches_per_epoch=batches_per_epoch)

    def training_loader(
        self, recipe: Recipe, data: SegmentationData, sampler: GlobalBatchSampler, skip_log: SkipLog
    ) -> DataLoader:
        """Return the augmented training batches."""
        _, mean, std, _ = input_settings(recipe)
        sample = Sample(data.train.label_map, segmentation_train_transform(mean, std, recipe.segmentation_augment))
        samples = TrainingSamples(data.train, sample, recipe.seed, skip_log)
        return training_samples_loader(recipe, samples, sampler, stack_pairs)

    def evaluation_loader(
        self, recipe: Recipe, data: SegmentationData, skip_log: SkipLog, shard: Shard | None = None
    ) -> DataLoader:
        """Return the validation images."""
        return evaluation_samples_loader(recipe, evaluation_samples(recipe, data.val, skip_log), shard)

    def write_results(
        self, run: RunFolder, recipe: Recipe, data: SegmentationData, model: nn.Module, skip_log: SkipLog
    ) -> dict[str, float]:
        """Write a label map for each image, the figures of each image and of each class, and the confusion."""
        run.label_maps.mkdir(exist_ok=True)
        device = next(model.parameters()).device
        # This is the main process alone: counts that waited for the others would wait for ever.
        whole = MeanIoU(len(data.classes), sync_on_compute=False).to(device)
        rows = []
        for batch in self.evaluation_loader(recipe, data, skip_log):
            for sample, logits in labelled(model, batch, recipe.evaluation):
                labels, target = logits.argmax(0), sample.target.to(device)
                write_label_map(run.label_maps / f"{sample.index:06}.png", labels.cpu().numpy())
                one = MeanIoU(len(data.classes), sync_on_compute=False).to(device)
                one.update(labels[None], target[None])
                whole.update(labels[None], target[None])
                figures = iou_figures(one)
                rows.append(
                    [
                        sample.index,
                        data.val.name(sample.index),
                        *map(_cell, (figures["mean_iou"], figures["pixel_accuracy"])),
                    ]
                )
        if not rows:
            raise UserError("none of the validation images can be read any more: see skipped.csv in the run folder")
        write_table(run.predictions, ("index", "name", "mean_iou", "pixel_accuracy"), rows)
        _write_classes(run, {**whole.compute(), "counts": whole.confmat}, data.classes)
        return {name: value for name, value in iou_figures(whole).items() if name in FIGURES}

    def describe(self, data: SegmentationData) -> dict[str, Any]:
        """Return nothing: the classes say all."""
        return {}

    def describe_results(self, run: RunFolder, data: SegmentationData) -> dict[str, Any]:
        """Return nothing: an answer needs no threshold."""
        return {}

    def main_figure(self, figures: dict[str, float]) -> tuple[str, float]:
        """Return the mIoU."""
        return "mIoU", figures["mean_iou"]

    def write_report(self, run: RunFolder, data: SegmentationData) -> str:
        """Write the page and return its name."""
        return write_report(run.path, data.val).name


def evaluation_samples(recipe: Recipe, images: SegmentationImages, skip_log: SkipLog) -> EvaluationSamples:
    """Return images with their label maps, normalised, at the size they have on the disk."""
    _, mean, std, _ = input_settings(recipe)
    return EvaluationSamples(images, Sample(images.label_map, segmentation_eval_transform(mean, std)), skip_log)


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
    images = images.to(next(model.parameters()).device)
    if wanted.short_side is not None:
        scale = min(wanted.short_side / min(size), wanted.max_size / max(size))
        images = images_v2.resize(images, [max(1, round(side * scale)) for side in size], antialias=True)
    return predict_logits(
        model, images, mode=wanted.mode, window=wanted.window, stride=wanted.stride, output_size=size
    ).float()


def iou_figures(metric: MeanIoU) -> dict[str, float]:
    """Return what is reported of a metric's counts, parts of 1."""
    result = metric.compute()
    return {
        "mean_iou": float(result["mean_iou"]),
        "pixel_accuracy": float(result["pixel_accuracy"]),
        "mean_accuracy": float(result["class_accuracy"].nanmean()),
    }


def _write_classes(run: RunFolder, result: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Write the figures of each class, from what :meth:`MeanIoU.compute` gives and its ``counts``."""
    counts = result["counts"].cpu()
    pairs = zip(result["iou"].tolist(), result["class_accuracy"].tolist(), strict=True)
    rows = [
        [name, pixels, _cell(iou), _cell(accuracy)]
        for name, pixels, (iou, accuracy) in zip(classes, counts.sum(1).tolist(), pairs, strict=True)
    ]
    write_table(run.per_class, ("class", "pixels", "iou", "accuracy"), rows)
    write_table(
        run.confusion, ("class", *classes), [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
    )


def _cell(value: float) -> float | str:
    """Return a number for a table; one that is not measured leaves its cell empty."""
    return "" if value != value else round(value, 6)


def _try(recipe: Recipe, model: nn.Module) -> None:
    """Raise unless the segmenter takes an image of the recipe's size."""
    size, training = recipe.data.image_size, model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except REFUSALS as error:
        raise UserError(
            f"{recipe.network.head or HEADS[0]} on {recipe.model} cannot take images of {size}x{size} ({error}): set"
            " data.image_size to their size, or the backbone's own argument, such as model_args.img_size"
        ) from error
    finally:
        model.train(training)
