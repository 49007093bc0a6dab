"""The callback that keeps the run folder: checkpoints, tables and curves, and the place to resume from."""

import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from convattn.data.names import escaped
from convattn.data.sampler import GlobalBatchSampler
from convattn.errors import UserError
from convattn.layers import ACmix
from convattn.report.run import rank
from convattn.tasks.checkpoints import DESCRIPTION, PROGRESS, Progress
from convattn.tasks.config import CheckpointConfig
from convattn.tasks.interrupt import RunInterrupted, StopRequest
from convattn.tasks.loaders import SkipLog
from convattn.tasks.module import TrainingModule
from convattn.tasks.processes import local, whole
from convattn.tasks.run_folder import PATHS, RunFolder, append_rows, cut_table, metrics_columns

PROJECT = "convattn"
"""What the runs are filed under in Weights & Biases and MLflow."""

AGREE_EVERY = 16
"""With several processes, they agree on stopping and saving every so many batches, and at the end of an epoch."""


@dataclass(frozen=True)
class RunFacts:
    """What a recorder has to know of the run.

    ``description`` is what every checkpoint says about its model; ``figures`` are measured after every epoch, the
    best epoch is that of the highest ``score``, see :func:`convattn.report.run.rank`; ``settings`` say how often
    ``last.ckpt`` is written.
    """

    description: dict[str, str]
    figures: tuple[str, ...]
    score: str
    settings: CheckpointConfig


class RunRecorder(Checkpoint):
    """Writes a run's folder while it trains, and ends the run after ``patience`` epochs without a better score.

    Args:
        open_folder: Makes or opens the run's folder; called once, on the main process.
        facts: What the run measures and says of itself.
        stop: Whether a person asked the run to end.
        skip_log: Where the loaders note the images that they could not read.
    """

    sampler: GlobalBatchSampler
    """The training batches, told where an epoch begins; set before training is."""

    def __init__(
        self, open_folder: Callable[[], RunFolder], facts: RunFacts, stop: StopRequest, skip_log: SkipLog
    ) -> None:
        self.open_folder, self.facts, self.stop, self.skip_log = open_folder, facts, stop, skip_log
        self.columns = metrics_columns(facts.figures)
        self.progress = Progress()
        self.folder: RunFolder | None = None
        self.rows: list[dict[str, float]] = []
        self._started = self._saved = time.monotonic()
        self._resumed = False

    @property
    def run(self) -> RunFolder:
        """The run's folder; there is one from ``setup`` on."""
        if self.folder is None:
            raise RuntimeError("the run folder is opened when training is set up")
        return self.folder

    @property
    def seconds(self) -> float:
        """The time that this run has trained, over all its sittings."""
        return self.progress.seconds + time.monotonic() - self._started

    def setup(self, trainer: Trainer, pl_module: TrainingModule, stage: str) -> None:
        """Agree on the run folder."""
        path = str(self.open_folder().path) if trainer.is_global_zero else ""
        self.folder = RunFolder(Path(trainer.strategy.broadcast(path)))
        self.skip_log.path = self.folder.skipped

    def on_save_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:
        """Add the run's own place to a checkpoint, and take out Lightning's, which is not exact inside an epoch."""
        checkpoint.pop("loops", None)
        checkpoint[DESCRIPTION] = self.facts.description
        place = replace(self.progress, epoch=pl_module.epoch, batch=pl_module.batch, seconds=self.seconds)
        checkpoint[PROGRESS] = {**asdict(place), "loss_sum": pl_module.loss_sum.cpu()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: TrainingModule, checkpoint: dict[str, Any]) -> None:
        """Go to the place that a checkpoint names."""
        stored = dict(checkpoint[PROGRESS])
        pl_module.loss_sum = stored.pop("loss_sum")
        self.progress = Progress(**stored)
        pl_module.epoch, pl_module.batch = self.progress.epoch, self.progress.batch
        self._go_to(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Start the clock and the loggers."""
        self._started = self._saved = time.monotonic()
        trainer.loggers = [*trainer.loggers, *self._loggers(pl_module)]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Prepare for the validation that a resume still owes; Lightning's sanity check runs it whole."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Prepare the tables."""
        self._begin(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Let the sampler begin where the run stands."""
        self.sampler.start(pl_module.epoch, pl_module.batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        """Save where it is time; stop where a person asked for it."""
        stopping, due = self._agree(trainer, pl_module)
        if stopping or due:
            self._save(trainer, pl_module, self.run.last)
        if stopping:
            raise RunInterrupted

    def on_validation_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        """Stop inside a validation, which a resume begins again; several processes stop after it."""
        if trainer.world_size == 1 and self.stop.received:
            self._save(trainer, pl_module, self.run.last)
            raise RunInterrupted

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Raise where training diverged, before anything is measured."""
        self._share_loss(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Close the epoch: its rows, then the checkpoints."""
        epoch, step, lr, figures = pl_module.epoch, pl_module.step, pl_module.lr, pl_module.measured
        self._check_result(trainer, pl_module)
        measured = (figures[name] for name in self.facts.figures)
        row = dict(zip(self.columns, (epoch + 1, step, pl_module.train_loss, *measured, lr, self.seconds), strict=True))
        self.rows.append(row)
        rates = _rates(pl_module)
        if trainer.is_global_zero:
            self._write(row, rates, trainer)
        better = self._is_best(pl_module, figures)
        if better:
            score, loss = rank(figures, self.facts.score)
            self.progress = replace(self.progress, best_score=score, best_loss=-loss, best_epoch=epoch + 1)
            if trainer.is_global_zero:
                pl_module.objective.write(self.run)
        pl_module.begin_epoch(epoch + 1)
        for path in (self.run.best, self.run.last) if better else (self.run.last,):
            self._save(trainer, pl_module, path)
        trainer.should_stop = trainer.should_stop or self.has_ended(pl_module)
        if trainer.sanity_checking:
            self._go_to(trainer, pl_module)

    def _is_best(self, module: TrainingModule, figures: dict[str, float]) -> bool:
        """Tell whether the epoch is the best so far; none is before the warm-up ends, but the last of a run may be."""
        done, warmup = module.epoch + 1, round(module.warmup_epochs, 6)
        if done < min(warmup, module.recipe.epochs):
            return False
        return rank(figures, self.facts.score) >= (self.progress.best_score, -self.progress.best_loss)

    def has_ended(self, module: TrainingModule) -> bool:
        """Return whether ``patience`` epochs have passed since the best one, or since the warm-up."""
        patience, begun = module.recipe.patience, max(self.progress.best_epoch, math.ceil(module.warmup_epochs))
        return patience is not None and module.epoch - begun >= patience

    def _begin(self, trainer: Trainer, module: TrainingModule) -> None:
        self.stop.watch()
        trainer.should_stop = trainer.should_stop or self.has_ended(module)
        if self._resumed or not trainer.is_global_zero:
            return
        self._resumed = True
        cut_table(self.run.metrics, self.columns, epochs=module.epoch)
        cut_table(self.run.paths, PATHS, epochs=module.epoch)

    def _loggers(self, module: TrainingModule) -> list[Logger]:
        """Return the loggers that the recipe names, writing into the run's folder."""
        found: list[Logger] = []
        names = module.recipe.trainer.loggers
        if "tensorboard" in names:
            if module.step == 0 and module.global_rank == 0:
                shutil.rmtree(self.run.tensorboard, ignore_errors=True)
            first_step = module.epoch * module.batches_per_epoch + 1
            folder = self._open_tensorboard() if module.global_rank == 0 else self.run.tensorboard
            found.append(TensorBoardLogger(folder, name="", version="", purge_step=first_step))
        if "csv" in names:
            found.append(CSVLogger(self.run.path, name="csv"))  # version_0, and another one after each resume
        name = self.run.path.resolve().name
        if "wandb" in names:
            found.append(WandbLogger(name, self.run.path, id=name, project=PROJECT, resume="allow"))
        if "mlflow" in names:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files are what needs no server and no database
            server = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{self.run.path.resolve() / 'mlruns'}"
            found.append(MLFlowLogger(PROJECT, name, tracking_uri=server))
        return found

    def _open_tensorboard(self) -> str:
        """Return a path to TensorBoard's folder that TensorBoard and Lightning read as it is."""
        folder = self.run.tensorboard
        if re.fullmatch(r"[\w/ .,+=@-]+", escaped(str(folder))):
            return str(folder)
        folder.mkdir(exist_ok=True)
        # open as long as the process runs; other systems than Linux have no such names
        return f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"

    def _go_to(self, trainer: Trainer, module: TrainingModule) -> None:
        """Make Lightning and the sampler begin at the module's place."""
        self.sampler.start(module.epoch, module.batch)
        current = trainer.fit_loop.epoch_progress.current
        current.processed = current.completed = module.epoch

    def _agree(self, trainer: Trainer, module: TrainingModule) -> tuple[bool, bool]:
        """Return whether to stop and whether to save now, the same on every process."""
        last = module.batch == module.batches_per_epoch
        if module.batch % module.recipe.accumulate and not last:
            return False, False  # a checkpoint holds no gradients
        steps, seconds = self.facts.settings.every_steps, self.facts.settings.every_seconds
        due = steps is not None and module.step % steps == 0
        late = seconds is not None and time.monotonic() - self._saved >= seconds
        if trainer.world_size == 1:
            return self.stop.received, due or late
        if module.batch % AGREE_EVERY and not due and not last:
            return False, False
        votes = torch.tensor([self.stop.received, late], dtype=torch.float32, device=module.device)
        votes = trainer.strategy.reduce(votes, reduce_op="sum")
        return bool(votes[0]), due or bool(votes[1])

    def _share_loss(self, trainer: Trainer, module: TrainingModule) -> None:
        module.loss_sum = trainer.strategy.reduce(module.loss_sum, reduce_op="mean")
        if not math.isfinite(module.train_loss):
            raise _diverged(module, f"the loss is {module.train_loss}")

    def _check_result(self, trainer: Trainer, module: TrainingModule) -> None:
        """Raise where the last step diverged, which the loss before it does not show.

        Sound weights may give no finite loss: on all validation images in an early epoch, on a single one in any.
        Only a last epoch without a finite loss ends the run.
        """
        parts = [local(value) for value in module.model.state_dict().values() if value.is_floating_point()]
        finite = torch.stack([part.isfinite().all() for part in parts]).all()
        losses = module.objective.losses.to(finite.device)
        counts = trainer.strategy.reduce(torch.stack([(~finite).float(), *losses]), reduce_op="sum")
        weights, good, bad = counts.tolist()
        module.objective.losses = torch.zeros_like(losses)
        if weights or (bad and not good and module.epoch + 1 == module.recipe.epochs):
            raise _diverged(module, f"the {'weights are' if weights else 'validation loss is'} not finite")

    def _save(self, trainer: Trainer, module: TrainingModule, path: Path) -> None:
        self._share_loss(trainer, module)
        trainer.save_checkpoint(path)
        self._saved = time.monotonic()

    def _write(self, row: dict[str, float], rates: list[tuple[str, float, float]], trainer: Trainer) -> None:
        append_rows(self.run.paths, [(row["epoch"], depth, *rate) for depth, rate in enumerate(rates)])
        append_rows(self.run.metrics, [["" if math.isnan(value) else value for value in row.values()]])
        curves = {key: row[key] for key in self.columns[2:]}
        curves |= {f"alpha/{name}": alpha for name, alpha, _ in rates}
        curves |= {f"beta/{name}": beta for name, _, beta in rates}
        for logger in trainer.loggers:
            logger.log_metrics(curves, int(row["step"]))
            logger.save()


def _diverged(module: TrainingModule, what: str) -> UserError:
    return UserError(
        f"training diverged: {what} in epoch {module.epoch + 1};"
        f" try a lower learning rate, such as optimizer.lr={module.recipe.optimizer.lr / 10:g}"
    )


def _rates(module: TrainingModule) -> list[tuple[str, float, float]]:
    """Return α and β of the network's ACmix layers by name; all processes ask, since each may hold a part of them."""
    mixes = [(name, layer.mix.rates()) for name, layer in acmix_layers(module.model)]
    return [(name, float(whole(alpha.detach())), float(whole(beta.detach()))) for name, (alpha, beta) in mixes]


def acmix_layers(model: torch.nn.Module) -> list[tuple[str, ACmix]]:
    """Return the ACmix layers of a model with their names, in order of depth."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, ACmix)]
