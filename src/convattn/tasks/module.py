"""What trains a network by a recipe: the optimizer, the schedule, the moving average, the place in the run."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from lightning import LightningModule
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from convattn.errors import UserError
from convattn.tasks.archives import optimizer_fault
from convattn.tasks.config import OptimizerConfig, Recipe
from convattn.tasks.fsdp import gather, shard
from convattn.tasks.layers import learning_rate_scales
from convattn.tasks.loaders import EvaluationSample
from convattn.tasks.randomness import Stream, seed_all, share_drop_path, share_sampling
from convattn.tasks.task import Objective


class TrainingModule(LightningModule):
    """Trains ``model`` by a recipe. Its place in the run, (epoch, batch), is what a resume continues from.

    ``model`` is what gets evaluated and shipped; with a moving average of the weights, ``student`` is what is trained.

    Args:
        model: The network.
        recipe: The run's settings.
        objective: What is minimised and measured.
        batches_per_epoch: The number of global batches in an epoch.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, objective: Objective, *, batches_per_epoch: int) -> None:
        super().__init__()
        if recipe.memory_format == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        self.recipe, self.batches_per_epoch = recipe, batches_per_epoch
        # in a tuple, so that it is no part of the state dict
        self._whole: tuple[nn.Module, ...] = (model,) if recipe.trainer.strategy == "fsdp" else ()
        if self._whole:
            model = deepcopy(model)
        self.model, self.objective = model, objective
        self.student: nn.Module | None = None
        self._ema: tuple[ModelEmaV3, ...] = ()
        if recipe.ema.decay is not None:
            self._follow(model)
        self.epoch, self.batch = 0, 0
        self.loss_sum = torch.zeros(())
        self.measured: dict[str, float] = {}

    @property
    def trained(self) -> nn.Module:
        """The network whose parameters the optimizer changes."""
        return self.model if self.student is None else self.student

    @property
    def step(self) -> int:
        """The number of training batches done."""
        return self.epoch * self.batches_per_epoch + self.batch

    @property
    def train_loss(self) -> float:
        """The mean loss over this epoch's batches so far, on this process."""
        return float(self.loss_sum) / max(1, self.batch)

    @property
    def warmup_epochs(self) -> float:
        """The epochs in which the learning rate rises."""
        schedule = self.recipe.schedule
        if schedule.warmup_steps is not None:
            return schedule.warmup_steps / self.batches_per_epoch
        return schedule.warmup * self.recipe.epochs

    @property
    def lr(self) -> float:
        """The learning rate of the latest step, that of the last layer."""
        return max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups)

    def train(self, mode: bool = True) -> TrainingModule:
        """As torch's; a batch norm that is frozen keeps its statistics."""
        super().train(mode)
        for module in self.trained.modules():
            if isinstance(module, _BatchNorm) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def configure_model(self) -> None:
        """Shard the networks, where the recipe says so."""
        if self._whole:
            for network in filter(None, (self.model, self.student)):
                shard(network, self.device_mesh)

    def setup(self, stage: str) -> None:
        """Learn how many processes there are."""
        share_drop_path(self.trained, rank=self.global_rank, world=self.trainer.world_size)
        share_sampling(self.trained, rank=self.global_rank, world=self.trainer.world_size)

    def configure_optimizers(self) -> Optimizer:
        """Return the recipe's optimizer; the schedule is a function of the step and needs no state."""
        optimizer, self.schedule = self._scheduled()
        return optimizer

    def _scheduled(self) -> tuple[Optimizer, Scheduler]:
        optimizer = make_optimizer(self.trained, self.recipe.optimizer)
        schedule = self.recipe.schedule
        found, _ = create_scheduler_v2(
            optimizer,
            schedule.name,
            num_epochs=self.recipe.epochs,
            warmup_epochs=self.warmup_epochs,
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            decay_rate={"poly": schedule.power, "multistep": schedule.decay_rate}.get(schedule.name, 1.0),
            decay_milestones=list(schedule.milestones),
            step_on_epochs=False,
            updates_per_epoch=self.batches_per_epoch,
        )
        return optimizer, found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose weights or optimizer are not of this network's form."""
        own, theirs = self.state_dict(), checkpoint["state_dict"]
        fault = next((name for name in own.keys() ^ theirs.keys()), None)
        fault = fault or next((name for name, value in own.items() if value.shape != theirs[name].shape), None)
        states = checkpoint["optimizer_states"]
        if fault:
            fault = f"its weights are others, as {fault!r}"
        elif len(states) != 1:
            fault = f"it has {len(states)} optimizers in place of one"
        else:
            wrong = optimizer_fault(states[0], self._scheduled()[0])
            fault = f"its optimizer cannot go on: {wrong}" if wrong else None
        if fault:
            raise UserError(f"{self.trainer.ckpt_path}: {fault}; delete it, or put the right file back")

    def on_train_start(self) -> None:
        """Bring the running loss to this device; see to the modes, which Lightning leaves as they are."""
        self.loss_sum = self.loss_sum.to(self.device)
        self.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of this process's share of one global batch."""
        seed_all(self.recipe.seed, Stream.STEP, self.step)
        self.schedule.step_update(self.step)
        loss = self.loss(batch)
        self.loss_sum += loss.detach()
        self.batch += 1
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the moving average follow."""
        super().optimizer_step(*args, **kwargs)
        for ema in self._ema:
            ema.update(self.trained, step=self.step)

    def follow_anew(self) -> None:
        """Let the moving average begin with the weights and statistics as they are now."""
        for ema in self._ema:
            ema.set(self.trained)

    def loss(self, batch: Any) -> Tensor:
        """Return what is to be minimised of a batch of the training loader."""
        return self.objective.loss(self.trained, batch)

    def on_validation_start(self) -> None:
        """Gather sharded weights: the processes measure different numbers of images, each without the others."""
        for whole in self._whole:
            gather(self.model, whole)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one validation batch."""
        self.objective.update(self._whole[0] if self._whole else self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Compute the figures; callbacks may monitor them."""
        self.measured = self.objective.compute()
        self.log_dict(self.measured, logger=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; evaluation samples, which differ in size, are moved where they are used."""
        if isinstance(batch, list) and all(isinstance(sample, EvaluationSample) for sample in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.batch = epoch, 0
        self.loss_sum = torch.zeros((), device=self.loss_sum.device)

    def _follow(self, model: nn.Module) -> None:
        ema = self.recipe.ema
        # one at a time where sharded weights are among whole buffers
        average = ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup, foreach=not self._whole)
        average.module.requires_grad_(False)
        # in a tuple, so that the weights appear once in the state dict
        self._ema, self.student, self.model = (average,), model, average.module


def make_optimizer(model: nn.Module, wanted: OptimizerConfig) -> Optimizer:
    """Return the recipe's optimizer of a network's parameters.

    Raises:
        UserError: where timm's optimizer of that name refuses its settings or lacks a package.
    """
    options = {"lr": wanted.lr, "weight_decay": wanted.weight_decay, "momentum": wanted.momentum}
    try:
        return create_optimizer_v2(parameter_groups(model, wanted), wanted.name, **options)
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError, NotImplementedError) as error:
        given = ", ".join(f"{name} {value:g}" for name, value in options.items())
        raise UserError(f"optimizer.name {wanted.name} cannot be made with {given}: {error}") from error


def parameter_groups(model: nn.Module, wanted: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameters that are trained in groups: those that decay and those that must not, of each layer.

    Without ``layer_decay`` all layers are one; ``lr_scale`` is what timm's schedules multiply the learning rate by.
    """
    spared = _spared(model)
    scales = {} if wanted.layer_decay is None else learning_rate_scales(model, wanted.layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_spared = name in spared or (
                wanted.decayed == "matrices" and (parameter.ndim <= 1 or name.endswith(".bias"))
            )
            group = groups.setdefault((scales.get(name, 1.0), is_spared), {"params": []})
            group["params"].append(parameter)
    for (scale, is_spared), group in groups.items():
        group |= ({"lr_scale": scale} if scales else {}) | ({"weight_decay": 0.0} if is_spared else {})
    return [groups[key] for key in sorted(groups)]


def _spared(model: nn.Module) -> set[str]:
    """Return the parameters that the network, or one that it is built of, says must not decay."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }
