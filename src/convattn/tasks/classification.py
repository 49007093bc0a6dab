"""Classification: a class for an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, resolve_data_config
from torch import Tensor, nn
from torch.nn import functional

from convattn.data.classes import open_classes, open_held_out
from convattn.data.digits import open_digits
from convattn.data.folder import Progress
from convattn.data.transforms import Transform, eval_transform, train_transform
from convattn.data.types import ClassificationData, LabelledImages, SkippedFile, Split
from convattn.data.writing import write_table
from convattn.errors import UserError
from convattn.publishing import wilson_interval
from convattn.tasks.answers import Answer, AnswerOptions, Scores
from convattn.tasks.building import build_model, device_of, in_layout
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import EvaluationSample, Sample, input_settings
from convattn.tasks.processes import Shard, gather_batch
from convattn.tasks.run_folder import PREDICTIONS, RunFolder
from convattn.tasks.sources import checked
from convattn.tasks.task import InputSize, Objective, Task

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.records import ClassRecords


class Batch(NamedTuple):
    """Evaluation images [B, 3, H, W] that could be read, their labels and places, and those that could not."""

    images: Tensor
    labels: Tensor
    places: list[int]
    unread: list[tuple[int, str, str]]


class ClassificationObjective(Objective):
    """Cross entropy of logits [B, classes], of mixed images where the recipe mixes; loss and accuracy."""

    def __init__(self, recipe: Recipe, classes: int, weights: Tensor | None = None) -> None:
        from timm.loss import SoftTargetCrossEntropy
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        super().__init__()
        self.recipe, self.classes = recipe, classes
        self.mix_loss = SoftTargetCrossEntropy() if weights is None else nn.CrossEntropyLoss(weights)
        self.register_buffer("weights", weights, persistent=False)
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_loss = MeanMetric()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross entropy."""
        images, labels = batch
        if self.recipe.mix.on:
            images, targets = self.mixed(images, labels)
            return self.mix_loss(model(in_layout(self.recipe, images)), targets)
        logits = model(in_layout(self.recipe, images))
        smoothing = self.recipe.label_smoothing
        return functional.cross_entropy(logits, labels, weight=self.weights, label_smoothing=smoothing)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Measure one evaluation batch."""
        if batch.places:
            logits = model(in_layout(self.recipe, batch.images)).float()
            another = (batch.labels + 1) % self.classes
            self.val_accuracy.update(torch.where(logits.isfinite().all(1), logits.argmax(1), another), batch.labels)
            self.measure(self.val_loss, functional.cross_entropy(logits, batch.labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """Return the loss and the accuracy."""
        result = {"val_loss": float(self.val_loss.compute()), "val_accuracy": float(self.val_accuracy.compute())}
        self.val_loss.reset()
        self.val_accuracy.reset()
        return result

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix in the pairs of the global batch, whatever the number of processes, and keep this process's share."""
        here = Shard.here()
        if here.world > 1:
            images, labels = gather_batch(images), gather_batch(labels)
        images, targets = self.mixed_here(images, labels)
        return images[here.rank :: here.world], targets[here.rank :: here.world]

    def mixed_here(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix these images in pairs, whatever other processes do."""
        mix = self.recipe.mix
        mixup = Mixup(
            mixup_alpha=mix.mixup,
            cutmix_alpha=mix.cutmix,
            prob=mix.prob,
            switch_prob=mix.switch_prob,
            label_smoothing=self.recipe.label_smoothing,
            num_classes=self.classes,
        )
        mixed: tuple[Tensor, Tensor] = mixup(images.clone(), labels)
        return mixed


class ClassificationTask(Task):
    """A class for an image; see :class:`convattn.tasks.task.Task`."""

    name = "classification"
    figures = ("val_loss", "val_accuracy")
    score = "val_accuracy"
    main = ("accuracy", "validation accuracy")
    recipes = ("digits", "folder")
    batch = 64
    image_sizes = "one"

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> ClassificationData:
        """Return the folder's images or the digits."""
        if recipe.data.folder is not None:
            where = recipe.data.folder
            data = open_classes(where, val_fraction=recipe.data.held_out, progress=progress)
        elif recipe.data.embedded == "digits":
            where = "the digits"
            data = open_digits(max(recipe.data.height_and_width))
        else:
            raise UserError("this recipe brings no images of classes: give a folder of them with --data")
        check_data(data, where)
        wanted = recipe.model_args.get("num_classes", len(data.classes))
        if wanted != len(data.classes):
            raise UserError(
                f"model_args.num_classes is {wanted}, but {where} has {len(data.classes)} classes: leave the setting"
                " out"
            )
        return data

    def open_other(
        self, root: Path, classes: list[str], recipe: Recipe, progress: Progress | None = None, split: Split = "val"
    ) -> tuple[list[str], LabelledImages, list[SkippedFile]]:
        """Return the images of the model's classes: those of the split, or all to validate on."""
        return classes, *open_held_out(root, classes, split=split, progress=progress)

    def network(self, recipe: Recipe, classes: int) -> nn.Module:
        """Return the classifier."""
        if recipe.network.head is not None:
            raise UserError("this recipe is for classification, which has no network.head: leave it out")
        return build_model(recipe, classes)

    def output_fault(self, output: Any, classes: int) -> str:
        """Return a fault unless the output is one logit per class."""
        is_logits = isinstance(output, Tensor) and output.shape == (1, classes)
        return "" if is_logits else "does not give one logit per class"

    def statistics(self, recipe: Recipe, model: nn.Module) -> Mapping[str, Any]:
        """Return those that timm has of the network, with its evaluation crop."""
        return resolve_data_config({}, model=model)

    def objective(self, recipe: Recipe, data: ClassificationData) -> ClassificationObjective:
        """Return the cross entropy and the accuracy."""
        return ClassificationObjective(recipe, len(data.classes), class_weights(recipe, data))

    def sampling_weights(self, recipe: Recipe, data: ClassificationData) -> np.ndarray | None:
        """Return the inverse of the number of images of each image's class."""
        if recipe.data.sampling != "balanced":
            return None
        labels = _labels(data)
        return 1 / np.bincount(labels)[labels]

    def training_sample(self, recipe: Recipe, images: LabelledImages) -> Sample:
        """Return augmented images with their classes."""
        return Sample(images.label, partial(_labelled, train_transform(*input_settings(recipe), recipe.augment)))

    def evaluation_sample(self, recipe: Recipe, images: LabelledImages, size: InputSize | None = None) -> Sample:
        """Return images with their classes."""
        return Sample(images.label, partial(_labelled, self.transform(recipe, size)))

    def transform(self, recipe: Recipe, size: InputSize | None = None) -> Callable[[Image.Image], Tensor]:
        """Return timm's transform for evaluation."""
        own, *rest = input_settings(recipe)
        return eval_transform(size or own, *rest, recipe.data.crop_pct)

    def collate_evaluation(self, batch: Sequence[EvaluationSample]) -> Batch:
        """Return one tensor: the loader's workers make it."""
        read = [sample for sample in batch if sample.image is not None]
        unread = [(one.index, one.skipped.path, one.skipped.reason) for one in batch if one.skipped is not None]
        images = torch.stack([sample.image for sample in read if sample.image is not None]) if read else torch.empty(0)
        labels = torch.tensor([-1 if sample.target is None else sample.target for sample in read])
        return Batch(images, labels, [sample.index for sample in read], unread)

    def answer(self, model: nn.Module, recipe: Recipe, batch: Batch) -> list[Answer]:
        """Return the logits of each image; none where they are not finite."""
        answers = [Answer(index, skipped=SkippedFile(name, reason)) for index, name, reason in batch.unread]
        if batch.places:
            logits = model(batch.images.to(device_of(model))).float().cpu()
            answers += map(_answer, batch.places, logits, batch.labels.tolist())
        return answers

    def scores(self, images: LabelledImages, classes: Sequence[str], answers: Iterable[Answer]) -> Scores:
        """Return top-1 and top-5 accuracy, the loss and the accuracy of every class."""
        seen, right, in_top5, loss = [0] * len(classes), [0] * len(classes), 0, 0.0
        answered = 0
        for one in answers:
            if not 0 <= one.target < len(classes):
                raise UserError(
                    f"{images.name(one.index)}: its label is {one.target}, the model's classes are"
                    f" 0 to {len(classes) - 1}"
                )
            seen[one.target] += 1
            if one.value is None:
                continue
            best = _best_five(one.value)
            answered += 1
            right[one.target] += best[0] == one.target
            in_top5 += one.target in best
            loss += float(functional.cross_entropy(one.value, torch.tensor(one.target)))
        count = max(1, sum(seen))
        rows = [
            {"class": name, "accuracy": hits / total if total else math.nan, "right": hits, "images": total}
            for name, hits, total in zip(classes, right, seen, strict=True)
        ]
        figures = {"top1": sum(right) / count, "top5": in_top5 / count, "loss": loss / max(1, answered)}
        return Scores(sum(seen), figures, rows)

    def records(self, loaded: LoadedModel, files: Sequence[Path], options: AnswerOptions) -> ClassRecords:
        """Return the most probable classes."""
        from convattn.tasks.records import ClassRecords

        return ClassRecords(loaded, options)

    def main_score(self, scores: Scores) -> tuple[str, float]:
        """Return the top-1 accuracy."""
        return "top-1 accuracy", scores.figures["top1"]

    def interval(self, scores: Scores) -> tuple[float, float] | None:
        """Return Wilson's 95 % interval of the top-1 accuracy."""
        return wilson_interval(sum(row["right"] for row in scores.per_class), scores.images)

    def lines(self, scores: Scores) -> list[str]:
        """Return the accuracies and the loss."""
        figures = scores.figures
        return [f"top-1 {figures['top1']:.2%}   top-5 {figures['top5']:.2%}   loss {figures['loss']:.4f}"]

    def record(self, scores: Scores) -> dict[str, Any]:
        """Return the scores for programs; the rows have the names of version 0.1."""
        names = {"class": "name", "images": "images", "right": "correct", "accuracy": "accuracy"}
        rows = [{theirs: row[ours] for ours, theirs in names.items()} for row in scores.per_class]
        return {"images": scores.images, **scores.figures, "per_class": rows}

    def write_results(self, run: RunFolder, data: ClassificationData, answers: Iterable[Answer]) -> dict[str, float]:
        """Write ``predictions.csv``; the accuracy is counted from its rows, with Wilson's 95 % interval of it.

        Beside it is the share of images whose class is among the five that are most probable. A row without a
        prediction is of an image that the network has no answer on.
        """
        rows: list[tuple[object, ...]] = []
        in_top5 = 0
        for one in answers:
            about = (one.index, data.val.name(one.index), one.target)
            if one.value is None:
                rows.append((*about, "", ""))
                continue
            in_top5 += one.target in _best_five(one.value)
            probability, predicted = one.value.softmax(-1).max(-1)
            rows.append((*about, int(predicted), f"{float(probability):.6f}"))
        write_table(run.predictions, PREDICTIONS, rows)
        right = sum(label == predicted for _, _, label, predicted, _ in rows)
        low, high = wilson_interval(right, len(rows))
        figures = {"accuracy": right / len(rows), "accuracy_low": low, "accuracy_high": high}
        return figures | {"top5": in_top5 / len(rows)}

    def image_size(self, recipe: Recipe, model: nn.Module) -> str:
        """Return the size of all images."""
        height, width = recipe.data.height_and_width
        return f"images of {height} px" if height == width else f"images of {height}x{width} px"

    def smaller(self, recipe: Recipe) -> str:
        """Return half of it."""
        height, width = (side // 2 for side in recipe.data.height_and_width)
        return f"data.image_size={height}" if height == width else f"data.image_size=[{height},{width}]"


def _answer(index: int, logits: Tensor, label: int) -> Answer:
    return Answer(index, logits if logits.isfinite().all() else None, label)


def _best_five(logits: Tensor) -> list[int]:
    """Return the classes of the five largest logits, the largest first; all where there are fewer."""
    best: list[int] = logits.topk(min(5, len(logits))).indices.tolist()
    return best


def class_weights(recipe: Recipe, data: ClassificationData) -> Tensor | None:
    """Return what the loss of each class is multiplied by, of mean 1 over the training images where it is balanced."""
    wanted, classes = recipe.class_weights, len(data.classes)
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = np.bincount(_labels(data), minlength=classes)
        return torch.from_numpy(counts.sum() / (classes * np.maximum(counts, 1))).float()
    if len(wanted) != classes:
        raise UserError(f"class_weights has {len(wanted)} numbers, the data has {classes} classes: give one for each")
    return torch.tensor(wanted)


def _labels(data: ClassificationData) -> np.ndarray:
    return np.array([data.train.label(index) for index in range(len(data.train))])


def check_data(data: ClassificationData, where: str) -> None:
    """Raise unless there are two classes, images in both splits and every label names a class."""
    if len(data.classes) < 2:
        raise UserError(
            f"{where} has one class only ({', '.join(data.classes) or 'none'}): a classifier needs two or more,"
            " one folder of images for each"
        )
    checked(data, where)
    for images in (data.train, data.val):
        for index in range(len(images)):
            label = images.label(index)
            if not 0 <= label < len(data.classes):
                raise UserError(
                    f"{where}: {images.name(index)} has label {label}, but the {len(data.classes)} classes"
                    f" are numbered 0 to {len(data.classes) - 1}"
                )


def _labelled(transform: Transform, image: Image.Image, label: int) -> tuple[Tensor, int]:
    return transform(image), label
