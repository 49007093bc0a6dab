"""The learning rate range test: train a few steps at rising learning rates, and see where the loss falls fastest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.plugins.io import TorchCheckpointIO
from timm.scheduler.scheduler import Scheduler

from convattn.data.writing import write_text
from convattn.errors import UserError
from convattn.publishing import FIRST, GRID, PLAIN, SECOND, drawing, to_svg
from convattn.tasks.loaders import SkipLog
from convattn.tasks.module import TrainingModule
from convattn.tasks.processes import Shard
from convattn.tasks.task import task_of
from convattn.tasks.training import Job, make_trainer, quiet_lightning

LOWEST, HIGHEST, STEPS, SKIPPED = 1e-6, 1.0, 100, 10


@dataclass(frozen=True)
class FoundRate:
    """A learning rate, and the losses (smoothed) at all rates that were tried."""

    rate: float
    rates: Sequence[float]
    losses: Sequence[float]


def find_lr(job: Job) -> FoundRate:
    """Run Lightning's learning rate finder on a job's network, data and optimizer; it changes the job's network.

    The rate rises from 1e-6 to 1 in 100 steps; the test ends early where the loss is four times the lowest.

    Raises:
        UserError: The recipe shards its weights, or the loss diverged before there was anything to see.
    """
    recipe = replace(job.recipe, epochs=STEPS)  # an epoch has a step at least
    if recipe.trainer.strategy == "fsdp":
        raise UserError("--find-lr does not work with trainer.strategy fsdp: find the rate with --strategy ddp")
    task, skip_log = task_of(recipe), SkipLog()
    with quiet_lightning(), TemporaryDirectory() as folder, _bar_on_a_terminal():
        finder = _Finder()
        trainer = make_trainer(recipe, TorchCheckpointIO(), callbacks=[finder], logger=False, default_root_dir=folder)
        sampler = task.sampler(recipe, job.data, Shard(trainer.global_rank, trainer.world_size))
        module = task.module(job.model, recipe, job.data, sampler.batches_per_epoch)
        trainer.fit(module, task.training_loader(recipe, job.data, sampler, skip_log))
    rates, losses = (np.asarray(finder.optimal_lr.results[name]) for name in ("lr", "loss"))
    return FoundRate(_steepest(rates, losses), rates.tolist(), losses.tolist())


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate at which the loss falls fastest with the logarithm of the rate.

    Lightning's own suggestion takes the slope by the rate itself, which is largest where the rate is smallest.
    """
    seen = np.isfinite(losses)
    seen[:SKIPPED] = seen[-1:] = False  # the mean of few losses, and the step that diverged
    if seen.sum() < 2:
        raise UserError("the loss diverged at once, so no learning rate can be suggested: check the data and the model")
    slopes = np.gradient(losses[seen], np.log(rates[seen]))
    return float(rates[seen][slopes.argmin()])


class _Finder(LearningRateFinder):
    """Lightning's finder, whose rates the recipe's schedule must not replace; training does not go on after it."""

    def __init__(self) -> None:
        super().__init__(LOWEST, HIGHEST, STEPS, update_attr=False)
        self._early_exit = True

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Let the rates be the finder's, and run it."""
        pl_module.schedule = _FinderSchedule(trainer)
        super().on_fit_start(trainer, pl_module)


class _FinderSchedule(Scheduler):
    """timm's form of the finder's rates, which scales them by layer as it does the recipe's."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer.optimizers[0], "lr", t_in_epochs=False, initialize=False)
        self.trainer = trainer

    def _get_lr(self, t: int) -> list[float]:
        return self.trainer.lr_scheduler_configs[0].scheduler.lr


@contextmanager
def _bar_on_a_terminal() -> Iterator[None]:
    """Keep the finder's progress bar out of files."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
        yield


def draw_rates(path: Path, found: FoundRate) -> None:
    """Draw the losses over the learning rates as an SVG file, with the rate that is suggested."""
    with drawing(PLAIN):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(found.rates, found.losses, color=FIRST, linewidth=2)
        axes.axvline(found.rate, color=SECOND, linestyle=(0, (4, 3)), label=f"suggested: {found.rate:.2g}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss, smoothed")
        axes.grid(**GRID)
        axes.legend()
        write_text(path, to_svg(figure, f"Training loss over the learning rate; suggested: {found.rate:.2g}"))
