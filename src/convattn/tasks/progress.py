"""What a person sees while training runs: a bar for the epoch, then one line of what it came to."""

import math
from typing import Any

from lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from convattn.tasks.module import TrainingModule
from convattn.tasks.recorder import RunRecorder
from convattn.tasks.run_folder import RunFolder

SHOWN = {
    "val_loss": ("val loss", ".4f"),
    "val_accuracy": ("val accuracy", "7.2%"),
    "box_AP": ("box AP", "6.1%"),
    "box_AP50": ("AP50", "6.1%"),
    "mask_AP": ("mask AP", "6.1%"),
    "mask_AP50": ("AP50", "6.1%"),
    "mean_iou": ("mIoU", "6.1%"),
    "pixel_accuracy": ("pixel accuracy", "6.1%"),
}
"""The figures that an epoch's line gives, with their names for people."""


class ProgressBar(Callback):
    """A bar of the steps and a line per epoch, on the main process; a pipe gets the lines alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: RunFolder | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:
        """Say where the run's files are."""
        self.run = _recorder(trainer).run
        self.console.print(f"run folder {self.run.path}\n", highlight=False, markup=False, soft_wrap=True)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        self._open(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        self._open(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        """Move the bar on; the loss is read seldom, since reading waits for the device."""
        if self._progress is None or self._task is None:
            return
        loss = {"loss": f"loss {pl_module.train_loss:.3f}"} if pl_module.batch % 10 == 1 else {}
        self._progress.update(self._task, completed=pl_module.step, epoch=f"epoch {pl_module.epoch + 1}", **loss)

    def on_validation_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Say that the epoch is being validated."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, loss="validating")

    def on_validation_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Print the epoch's line."""
        if self._progress is None:
            return
        recorder = _recorder(trainer)
        row = recorder.rows[-1]
        epochs = pl_module.recipe.epochs
        mark = "  best" if recorder.progress.best_epoch == row["epoch"] else ""
        self._progress.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:.4f}"
            f"{_figures(row)}  {row['seconds']:.0f} s{mark}",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:
        """Take the bar away."""
        self._close()

    def _open(self, trainer: Trainer, module: TrainingModule) -> None:
        if self._progress is not None or not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        total = module.recipe.epochs * module.batches_per_epoch
        self._task = self._progress.add_task(
            "", total=total, completed=module.step, epoch=f"epoch {module.epoch + 1}", loss=""
        )
        self._progress.start()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _figures(row: dict[str, float]) -> str:
    """Return the epoch's main figures, those that the task measures."""
    return "".join(f"  {name} {_shown(row[key], form)}" for key, (name, form) in SHOWN.items() if key in row)


def _shown(value: float, form: str) -> str:
    """Return a figure in its form, a dash where there was nothing to measure."""
    return "–" if math.isnan(value) else f"{value:{form}}"


def _recorder(trainer: Trainer) -> RunRecorder:
    return next(callback for callback in trainer.callbacks if isinstance(callback, RunRecorder))
