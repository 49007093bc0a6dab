"""What a person sees while training runs: a bar for the epoch, then one line of what it came to."""

import math
import time
from contextlib import ExitStack
from typing import Any

from lightning import Trainer
from lightning.pytorch import callbacks
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from convattn.report.text import duration
from convattn.tasks.module import TrainingModule
from convattn.tasks.pace import Heartbeat, Pace
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

LONG = 5.0
"""Seconds of a validation from which on it is said that another one follows the last epoch."""


class ProgressBar(callbacks.ProgressBar):
    """A bar of the steps and a line per epoch, on the main process; a pipe gets the lines, and others between them.

    ``faster`` is what would make training faster, said where it takes long.
    """

    def __init__(self, console: Console, faster: str = "") -> None:
        super().__init__()
        self.console = console
        self.run: RunFolder | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._open_now = ExitStack()
        self._loss = self._state = ""
        self._pace, self._heart = Pace(faster), Heartbeat(self._print, lambda: self._state)
        self._validated = 0.0

    @property
    def text(self) -> str:
        """What the bar says beside its steps."""
        return "" if self._progress is None else str(self._progress.tasks[0].fields["loss"])

    def disable(self) -> None:
        """Say nothing, as all processes but the main one."""
        self.console.quiet = True

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Say where the run's files are."""
        self.run = _recorder(trainer).run
        self._print(f"run folder {self.run.path}\n")

    def on_sanity_check_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        self._open(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        self._open(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Start the epoch's clock."""
        self._pace.begin_epoch()
        self._stand(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        """Move the bar on; the loss is read seldom, since reading waits for the device."""
        if self._progress is None or self._task is None:
            return
        self._pace.step()
        if pl_module.batch % 10 == 1 or pl_module.device.type == "cpu":
            self._loss = f"loss {pl_module.train_loss:.3f}"
        shown = {"epoch": f"epoch {pl_module.epoch + 1}", "loss": self._loss}
        self._progress.update(self._task, completed=pl_module.step, **shown)
        self._stand(pl_module)
        self._say_pace(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Say that the epoch is being validated."""
        self._validated = time.monotonic()
        self._state = f"{_epoch(pl_module)}  validating"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, loss="validating")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Say how far the validation is."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._state = f"{_epoch(pl_module)}  validated {batch_idx + 1}/{batches[0]:.0f}"

    def on_validation_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Show the loss again."""
        self._validated = time.monotonic() - self._validated
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, loss=self._loss)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Print the line of an epoch whose validation was owed."""
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Print the epoch's line."""
        if self._progress is None:
            return
        recorder = _recorder(trainer)
        row = recorder.rows[-1]
        epochs = pl_module.recipe.epochs
        mark = "  best" if recorder.progress.best_epoch == row["epoch"] else ""
        self._print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:.4f}"
            f"{_figures(row)}  {row['seconds']:.0f} s{mark}"
        )
        self._pace.end_epoch()
        self._say_pace(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Take the bar away."""
        if self._progress is not None and self._validated > LONG:
            self._print("trained; what follows: the results of the best weights, the report")
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: TrainingModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:
        """Take the bar away."""
        self._close()

    def _say_pace(self, module: TrainingModule) -> None:
        """Say once how long an epoch takes, as soon as that is known."""
        line = self._pace.line(module)
        if line:
            self._print(line)

    def _stand(self, module: TrainingModule) -> None:
        """Keep where training stands, for a line that a silence asks for."""
        to_go = f"  {duration(self._pace.left(module), ' ')} to go" if self._pace.is_known else ""
        loss = f"  {self._loss}" if module.batch else ""
        self._state = f"{_epoch(module)}  step {module.batch}/{module.batches_per_epoch}{loss}{to_go}"

    def _print(self, line: str) -> None:
        self._heart.rest()
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

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
        self._stand(module)
        self._open_now.enter_context(self._progress)
        if not self.console.is_terminal:
            self._open_now.enter_context(self._heart)

    def _close(self) -> None:
        if self._progress is not None:
            self._open_now.close()
            self._progress = None


def _epoch(module: TrainingModule) -> str:
    epochs = module.recipe.epochs
    return f"epoch {module.epoch + 1:>{len(str(epochs))}}/{epochs}"


def _figures(row: dict[str, float]) -> str:
    """Return the epoch's main figures, those that the task measures."""
    return "".join(f"  {name} {_shown(row[key], form)}" for key, (name, form) in SHOWN.items() if key in row)


def _shown(value: float, form: str) -> str:
    """Return a figure in its form, a dash where there was nothing to measure."""
    return "–" if math.isnan(value) else f"{value:{form}}"


def _recorder(trainer: Trainer) -> RunRecorder:
    return next(callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunRecorder))
