"""Classification: the LightningModule that trains an image classifier and measures it."""

from typing import Any

import torch
from lightning import LightningModule
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from convattn.tasks.config import Recipe
from convattn.tasks.loaders import UNREADABLE
from convattn.tasks.randomness import Stream, seed_all, share_drop_path


class Classifier(LightningModule):
    """Trains ``model`` by a recipe. Its place in the run, (epoch, batch), is what a resume continues from.

    ``model`` is what gets evaluated and shipped; with a moving average of the weights, ``student`` is what is trained.

    Args:
        model: The network, from images [B, 3, H, W] to logits [B, classes].
        recipe: The run's settings.
        classes: The number of classes.
        batches_per_epoch: The number of global batches in an epoch.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, *, classes: int, batches_per_epoch: int) -> None:
        super().__init__()
        if recipe.memory_format == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        self.recipe, self.classes, self.batches_per_epoch = recipe, classes, batches_per_epoch
        self.model = model
        self.student: nn.Module | None = None
        self._ema: tuple[ModelEmaV3, ...] = ()
        if recipe.ema.decay is not None:
            self._follow(model)
        self.mix_loss = SoftTargetCrossEntropy()
        self.val_accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=UNREADABLE)
        self.val_loss = MeanMetric()
        self.epoch, self.batch = 0, 0
        self.loss_sum = torch.zeros(())

    @property
    def trained(self) -> nn.Module:
        """The network whose parameters the optimizer changes."""
        return self.model if self.student is None else self.student

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return self.epoch * self.batches_per_epoch + self.batch

    @property
    def train_loss(self) -> float:
        """The mean loss over this epoch's batches so far, on this process."""
        return float(self.loss_sum) / max(1, self.batch)

    @property
    def lr(self) -> float:
        """The learning rate of the latest step."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def setup(self, stage: str) -> None:
        """Learn how many processes there are."""
        share_drop_path(self.trained, rank=self.global_rank, world=self.trainer.world_size)

    def configure_optimizers(self) -> Optimizer:
        """Return the recipe's optimizer; the schedule is a function of the step and needs no state."""
        wanted = self.recipe.optimizer
        groups = self.trained if wanted.decayed == "matrices" else _all_decayed(self.trained)
        optimizer = create_optimizer_v2(
            groups, wanted.name, lr=wanted.lr, weight_decay=wanted.weight_decay, momentum=wanted.momentum
        )
        schedule = self.recipe.schedule
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            schedule.name,
            num_epochs=self.recipe.epochs,
            warmup_epochs=schedule.warmup * self.recipe.epochs,
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            decay_rate=1.0,
            step_on_epochs=False,
            updates_per_epoch=self.batches_per_epoch,
        )
        return optimizer

    def on_train_start(self) -> None:
        """Bring the running loss to this device."""
        self.loss_sum = self.loss_sum.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of this process's share of one global batch."""
        seed_all(self.recipe.seed, Stream.STEP, self.step)
        self.schedule.step_update(self.step)
        images, labels = batch
        if self.recipe.mix.on:
            images, targets = self._mix(images, labels)
            loss = self.mix_loss(self.trained(self._layout(images)), targets)
        else:
            logits = self.trained(self._layout(images))
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.loss_sum += loss.detach()
        return loss

    def advance(self) -> None:
        """Move one batch on: the moving average follows, the place in the run is counted."""
        self.batch += 1
        for ema in self._ema:
            ema.update(self.trained, step=self.step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one validation batch."""
        images, labels = batch
        read = labels != UNREADABLE
        logits = self.model(self._layout(images)).float()
        self.val_accuracy.update(logits, labels)
        if read.any():
            self.val_loss.update(functional.cross_entropy(logits[read], labels[read]), weight=int(read.sum()))

    def validation_result(self) -> tuple[float, float]:
        """Return (loss, accuracy) over all processes and start anew."""
        result = float(self.val_loss.compute()), float(self.val_accuracy.compute())
        self.val_loss.reset()
        self.val_accuracy.reset()
        return result

    def begin_epoch(self, epoch: int) -> None:
        """Stand at the beginning of an epoch."""
        self.epoch, self.batch = epoch, 0
        self.loss_sum = torch.zeros((), device=self.loss_sum.device)

    def _follow(self, model: nn.Module) -> None:
        ema = self.recipe.ema
        average = ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup)
        average.module.requires_grad_(False)
        # in a tuple, so that the weights appear once in the state dict
        self._ema, self.student, self.model = (average,), model, average.module

    def _layout(self, images: Tensor) -> Tensor:
        if self.recipe.memory_format == "channels_last":
            return images.contiguous(memory_format=torch.channels_last)
        return images

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


def _all_decayed(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in two groups, those that decay, biases and norms with them, and those that must not."""
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in spared]["params"].append(parameter)
    return [group for group in groups if group["params"]]
