"""Classification: what trains an image classifier, measures it and writes down its answers."""

from collections.abc import Iterator
from typing import Any

import torch
from scipy.stats import binomtest
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from convattn.data.folder import Progress
from convattn.data.sampler import GlobalBatchSampler
from convattn.data.types import ClassificationData
from convattn.errors import UserError
from convattn.report import write_report
from convattn.tasks.building import build_model, check_model, resolve
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import UNREADABLE, Shard, SkipLog, evaluation_loader, open_data, training_loader
from convattn.tasks.module import TrainingModule
from convattn.tasks.run_folder import PREDICTIONS, RunFolder, write_table


class Classifier(TrainingModule):
    """Trains a network from images [B, 3, H, W] to logits [B, classes]; see :class:`TrainingModule`."""

    def __init__(self, model: nn.Module, recipe: Recipe, *, classes: int, batches_per_epoch: int) -> None:
        super().__init__(model, recipe, batches_per_epoch=batches_per_epoch)
        self.classes = classes
        self.mix_loss = SoftTargetCrossEntropy()
        self.val_accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=UNREADABLE)
        self.val_loss = MeanMetric()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross entropy, of mixed images where the recipe mixes."""
        images, labels = batch
        if self.recipe.mix.on:
            images, targets = self._mix(images, labels)
            return self.mix_loss(self.trained(self.in_layout(images)), targets)
        logits = self.trained(self.in_layout(images))
        return functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one validation batch."""
        images, labels = batch
        read = labels != UNREADABLE
        logits = self.model(self.in_layout(images)).float()
        self.val_accuracy.update(logits, labels)
        if read.any():
            self.measure(self.val_loss, functional.cross_entropy(logits[read], labels[read]), int(read.sum()))

    def validation_result(self) -> dict[str, float]:
        """Return the loss and the accuracy."""
        result = {"val_loss": float(self.val_loss.compute()), "val_accuracy": float(self.val_accuracy.compute())}
        self.val_loss.reset()
        self.val_accuracy.reset()
        return result

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix in the pairs of the global batch, whatever the number of processes, and keep this process's share."""
        mix, rank, world = self.recipe.mix, self.global_rank, self.trainer.world_size
        if world > 1:
            gathered, gathered_labels = self.all_gather(images), self.all_gather(labels)
            images = gathered.transpose(0, 1).flatten(0, 1)
            labels = gathered_labels.transpose(0, 1).flatten(0, 1)
        mixup = Mixup(
            mixup_alpha=mix.mixup,
            cutmix_alpha=mix.cutmix,
            prob=mix.prob,
            switch_prob=mix.switch_prob,
            label_smoothing=self.recipe.label_smoothing,
            num_classes=self.classes,
        )
        images, targets = mixup(images.clone(), labels)
        return images[rank::world], targets[rank::world]


class ClassificationTask:
    """A class for an image; see :class:`convattn.tasks.task.Task`."""

    figures = ("val_loss", "val_accuracy")
    score = "val_accuracy"

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> ClassificationData:
        """Return the folder's images or the digits."""
        return open_data(recipe, progress)

    def build(self, recipe: Recipe, data: ClassificationData) -> tuple[nn.Module, Recipe]:
        """Return the classifier, and the recipe with the statistics of its inputs."""
        model = build_model(recipe, len(data.classes))
        check_model(recipe, model, len(data.classes))
        return model, resolve(recipe, model)

    def module(
        self, model: nn.Module, recipe: Recipe, data: ClassificationData, batches_per_epoch: int
    ) -> TrainingModule:
        """Return what trains it."""
        return Classifier(model, recipe, classes=len(data.classes), batches_per_epoch=batches_per_epoch)

    def training_loader(
        self, recipe: Recipe, data: ClassificationData, sampler: GlobalBatchSampler, skip_log: SkipLog
    ) -> DataLoader:
        """Return the augmented training batches."""
        return training_loader(recipe, data.train, sampler, skip_log)

    def evaluation_loader(
        self, recipe: Recipe, data: ClassificationData, skip_log: SkipLog, shard: Shard | None = None
    ) -> DataLoader:
        """Return the validation images."""
        return evaluation_loader(recipe, data.val, skip_log, shard)

    def write_results(
        self, run: RunFolder, recipe: Recipe, data: ClassificationData, model: nn.Module, skip_log: SkipLog
    ) -> dict[str, float]:
        """Write ``predictions.csv``; the accuracy is counted from its rows, with Wilson's 95 % interval of it."""
        rows = list(_predictions(recipe, data, model, skip_log))
        write_table(run.predictions, PREDICTIONS, rows)
        if not rows:
            raise UserError("none of the validation images can be read any more: see skipped.csv in the run folder")
        right = sum(label == predicted for _, _, label, predicted, _ in rows)
        interval = binomtest(right, len(rows)).proportion_ci(method="wilson")
        return {"accuracy": right / len(rows), "accuracy_low": interval.low, "accuracy_high": interval.high}

    def describe(self, data: ClassificationData) -> dict[str, Any]:
        """Return nothing: the classes say all."""
        return {}

    def describe_results(self, run: RunFolder, data: ClassificationData) -> dict[str, Any]:
        """Return nothing: an answer needs no threshold."""
        return {}

    def main_figure(self, figures: dict[str, float]) -> tuple[str, float]:
        """Return the accuracy with its name for people."""
        return "validation accuracy", figures["accuracy"]

    def write_report(self, run: RunFolder, data: ClassificationData) -> str:
        """Write the page and return its name."""
        return write_report(run.path, data.val).name


def _predictions(
    recipe: Recipe, data: ClassificationData, model: nn.Module, skip_log: SkipLog
) -> Iterator[tuple[Any, ...]]:
    """Yield a row per validation image, in the data's order."""
    model.eval()
    index = 0
    device = next(model.parameters()).device
    for images, labels in evaluation_loader(recipe, data.val, skip_log):
        with torch.inference_mode():
            probabilities, predicted = model(images.to(device)).float().softmax(-1).max(-1)
        for label, guess, probability in zip(labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True):
            if label != UNREADABLE:
                yield index, data.val.name(index), label, guess, f"{probability:.6f}"
            index += 1
