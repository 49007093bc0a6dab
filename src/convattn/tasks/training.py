"""A training run from its recipe to its report."""

import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from convattn.data.folder import Progress
from convattn.data.formats import is_name
from convattn.data.names import read_names
from convattn.data.transforms import crop_fraction
from convattn.errors import UserError, naming_file, user_path
from convattn.tasks.alone import alone
from convattn.tasks.building import check_names
from convattn.tasks.checkpoint_io import AtomicCheckpointIO
from convattn.tasks.checkpoints import (
    PROGRESS,
    check_same_model,
    describe,
    read_checkpoint,
)
from convattn.tasks.config import Recipe
from convattn.tasks.finetuning import NormEstimate, norm_images
from convattn.tasks.finishing import Result, finish
from convattn.tasks.fsdp import ShardedStrategy
from convattn.tasks.interrupt import RunInterrupted, Stopped, StopRequest
from convattn.tasks.launches import begun_run, join, write_launch
from convattn.tasks.loaders import SkipLog
from convattn.tasks.module import make_optimizer
from convattn.tasks.processes import Shard
from convattn.tasks.recipes import read_recipe
from convattn.tasks.recorder import RunFacts, RunRecorder
from convattn.tasks.run_folder import RunFolder, create_run, write_start
from convattn.tasks.task import Data, task_of

WORK = "trains"
"""What a process that holds a run's folder says that it does."""

STARTS = ("weights", "backbone_weights")
"""The settings that name a file to start from."""

RESUMABLE = ("trainer.", "checkpoint.", "data.folder", "data.workers")
"""The settings that a resume may change: none of them changes the result."""


@dataclass(frozen=True)
class Job:
    """Everything that a run trains with, checked and ready."""

    recipe: Recipe
    data: Data
    model: torch.nn.Module
    open_folder: Callable[[], RunFolder]
    checkpoint: Path | None = None


def prepare(
    recipe: Recipe, out: Path, progress: Progress | None = None, *, model: torch.nn.Module | None = None
) -> Job:
    """Check a recipe against its data and its model, before anything is written.

    Where torchrun or SLURM started the command again, the job goes on with the run that it began before.
    ``progress`` is called with (images looked at, images in all); ``model`` takes the place of the recipe's.

    Raises:
        UserError: for whatever a person can mend.
    """
    check_names(recipe)
    # a resume may come from another place
    if recipe.data.folder is not None and not is_name(recipe.data.folder):
        folder = str(user_path(recipe.data.folder).absolute())
        recipe = replace(recipe, data=replace(recipe.data, folder=folder))
    for name in STARTS:
        if (path := getattr(recipe, name)) is not None:
            recipe = replace(recipe, **{name: str(user_path(path).absolute())})
    data, given = task_of(recipe).open_data(recipe, progress), model
    model, recipe = _model(recipe, data, given)
    begun = begun_run(out, recipe)
    if begun is not None:
        return prepare_resume(begun, progress=progress, trust=True, model=given)

    def open_folder() -> RunFolder:
        run = create_run(out, run_name(recipe))
        write_launch(run)
        write_start(run, recipe, data.classes, data.skipped, task_of(recipe).figures)
        return run

    return Job(recipe, data, model, open_folder)


def prepare_resume(
    run: RunFolder,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    *,
    trust: bool = False,
    model: torch.nn.Module | None = None,
) -> Job:
    """Check that a run can continue from its last checkpoint, or from its beginning if it has none yet.

    ``model`` takes the place of the recipe's, as it did when the run began; ``trust`` lets the run's recipe name a
    network that opens other files or the network, ``hf-hub:owner/name``.

    Raises:
        UserError: where the checkpoint, the data and the recipe do not belong together.
    """
    check_resume_overrides(overrides or {}, run.path)
    checkpoint = run.last if run.last.is_file() else None
    # the weights come from the checkpoint: there is nothing to fetch again
    fetched = {"pretrained": False, **dict.fromkeys(STARTS)} if checkpoint is not None else {}
    recipe = read_recipe(run.config, {**(overrides or {}), **fetched}, trust=trust)
    if recipe.data.crop_pct is None and task_of(recipe).image_sizes == "one":  # written by version 0.1
        recipe = replace(recipe, data=replace(recipe.data, crop_pct=crop_fraction(*recipe.data.height_and_width)))
    data = task_of(recipe).open_data(recipe, progress)
    with naming_file(run.classes):
        known = read_names(run.classes.read_text(encoding="utf-8")) if run.classes.is_file() else data.classes
    if known != data.classes:
        raise UserError(
            f"{run.path} was trained on the classes {', '.join(known)}, but the images now have"
            f" {', '.join(data.classes)}: put the folders back, or start a new run"
        )
    model, recipe = _model(recipe, data, model)
    if checkpoint is not None:
        stored = read_checkpoint(checkpoint)
        check_same_model(stored, recipe, data.classes, checkpoint)
    return Job(recipe, data, model, lambda: run, checkpoint)


def check_resume_overrides(overrides: Mapping[str, Any], run: Path) -> None:
    """Raise for a setting that a run cannot change halfway, nor after its end, which its learning rate was led to."""
    for key, value in overrides.items():
        if not key.startswith(RESUMABLE):
            raise UserError(
                f"a resumed run keeps its {key}; what may change: {', '.join(RESUMABLE)}. For other settings start a"
                f" new run: convattn train --recipe {run / 'config.yaml'} {key}={value}"
            )


def train(job: Job, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()) -> Result | None:
    """Train until the recipe's last epoch, then evaluate the best weights and write the report.

    No other process may train in the run's folder meanwhile.

    Args:
        job: What :func:`prepare` or :func:`prepare_resume` returned.
        callbacks: Callbacks of Lightning's; their state is in the checkpoints.
        loggers: Loggers of Lightning's beside those that the recipe names.

    Returns:
        The run's result; None on all processes but the main one.

    Raises:
        RunInterrupted: after a Ctrl-C or SIGTERM; the run can be resumed.
        UserError: for whatever a person can mend.
    """
    with ExitStack() as folder_held:

        def open_folder() -> RunFolder:
            run = job.open_folder()
            folder_held.enter_context(alone(run.path, WORK))
            return run

        trainer, run = _fit(replace(job, open_folder=open_folder), callbacks, loggers)
        if not trainer.is_global_zero:
            return None
        return finish(run, job.recipe, job.data, job.model, trainer.strategy.root_device)


def _fit(job: Job, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> tuple[Trainer, RunFolder]:
    """Train until the recipe's last epoch."""
    recipe, task, skip_log = job.recipe, task_of(job.recipe), SkipLog()
    with quiet_lightning(), StopRequest() as stop:
        description = describe(recipe, job.data.classes, task.describe(job.data))
        trainer_callbacks = [*callbacks, *_norm_estimate(job, skip_log)]
        facts = RunFacts(description, task.figures, task.score, recipe.checkpoint)
        recorder = RunRecorder(job.open_folder, facts, stop, skip_log)
        trainer = make_trainer(
            recipe,
            callbacks=[*trainer_callbacks, recorder],
            logger=list(loggers),
            num_sanity_val_steps=-1 if _owes_validation(job) else 0,
        )
        shard = Shard(trainer.global_rank, trainer.world_size)
        recorder.sampler = sampler = task.sampler(recipe, job.data, shard)
        module = task.module(job.model, recipe, job.data, sampler.batches_per_epoch)
        if recipe.compile:
            task.compiled(module.trained).compile()
        try:
            trainer.fit(
                module,
                task.training_loader(recipe, job.data, sampler, skip_log),
                task.evaluation_loader(recipe, job.data, skip_log, shard),
                ckpt_path=job.checkpoint,
            )
        except SIGTERMException as error:  # came while Lightning's handler was in ours' place
            raise RunInterrupted from error
        except Stopped:
            if hasattr(trainer.strategy.launcher, "kill"):  # the other processes, which wait for this one
                trainer.strategy.launcher.kill(signal.SIGKILL)
            raise
    if stop.received:
        raise RunInterrupted
    return trainer, recorder.run


def _norm_estimate(job: Job, skip_log: SkipLog) -> list[Callback]:
    """Return what estimates the batch norms anew, where the run begins with that."""
    count = 0 if job.checkpoint is not None else norm_images(job.recipe, job.model)
    if not count:
        return []
    data = replace(job.recipe.data, workers=0, repeats=1, sampling="shuffled")  # each image counts as often
    task, recipe = task_of(job.recipe), replace(job.recipe, data=data)

    def batches() -> Iterator[Any]:
        sampler = task.sampler(recipe, job.data, Shard.here())
        loader = task.training_loader(recipe, job.data, sampler, skip_log)
        return islice(loader, math.ceil(count / sampler.batch_size))

    return [NormEstimate(batches)]


def make_trainer(recipe: Recipe, checkpoint_io: CheckpointIO | None = None, **options: Any) -> Trainer:
    """Return Lightning's trainer for a recipe, with its devices, strategy, precision and nodes.

    Checkpoints are a run's unless ``checkpoint_io`` writes others. ``options`` are further ones of Lightning's
    ``Trainer``.
    """
    wanted = recipe.trainer
    join()
    try:
        return Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            strategy=ShardedStrategy() if wanted.strategy == "fsdp" else wanted.strategy,
            precision=wanted.precision,  # type: ignore[arg-type]
            num_nodes=wanted.num_nodes,
            sync_batchnorm=wanted.sync_batchnorm,
            deterministic=wanted.deterministic,
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.optimizer.clip_grad,
            accumulate_grad_batches=recipe.accumulate,
            plugins=[checkpoint_io or AtomicCheckpointIO(), *_cluster()],
            use_distributed_sampler=False,  # the loaders have their own, exact one
            enable_progress_bar=any(isinstance(one, ProgressBar) for one in options["callbacks"]),
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"Lightning cannot train with accelerator={wanted.accelerator}, devices={wanted.devices},"
            f" strategy={wanted.strategy}, precision={wanted.precision}, num_nodes={wanted.num_nodes}: {error}"
        ) from error


def _cluster() -> list[SLURMEnvironment]:
    """Return SLURM's environment, where there is one, without checkpoints of Lightning's own: a run has its own."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips and its advice on workers and loggers off the screen; errors pass."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for module in ("lightning", "torch.utils.data", "torchmetrics", "torch.optim.lr_scheduler"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _model(recipe: Recipe, data: Data, model: torch.nn.Module | None) -> tuple[torch.nn.Module, Recipe]:
    if recipe.compile and recipe.trainer.strategy == "fsdp":
        raise UserError("compile does not work with trainer.strategy fsdp: leave one of them out")
    with quiet_lightning():
        seed_everything(recipe.seed, verbose=False)
    model, recipe = task_of(recipe).build(recipe, data, model)
    make_optimizer(model, recipe.optimizer)  # refused before anything is written
    return model, recipe


def run_name(recipe: Recipe) -> str:
    """Return what a run of a recipe is called, after its time."""
    return "-".join(filter(None, (recipe.network.head, recipe.model, recipe.convert.to)))


def _owes_validation(job: Job) -> bool:
    """Return whether the checkpoint was written after an epoch's last batch, before its validation was over."""
    if job.checkpoint is None:
        return False
    batches = max(1, len(job.data.train) // job.recipe.batch_size)
    return read_checkpoint(job.checkpoint)[PROGRESS]["batch"] >= batches
