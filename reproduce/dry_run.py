"""Full-scale commands tried before they cost a month: each network is built, loaded and trained for one step.

The network is the command's own, at its full width and depth; the images are noise, few and small, in the data set's
own layout. A detector or segmenter loads the weights that its backbone's command has written, random ones, as strictly
as those of a real run.
"""

from __future__ import annotations

import gc
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convattn.tasks.checkpoints import describe, write_weights
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import SkipLog
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.task import task_of
from convattn.tasks.training import Job, make_trainer, prepare, quiet_lightning
from reproduce.entries import Part
from reproduce.made_up_data import IMAGES, write_data
from reproduce.settings import Setting

OPTIONS = {"--model": "model", "--data": "data.folder", "--devices": "trainer.devices", "--out": ""}
"""The options of the commands, and the settings that they are; ``--out`` is none."""

SMALLER: dict[str, Any] = {
    "batch_size": IMAGES,
    "epochs": 1,
    "data.image_size": 64,
    "data.workers": 0,
    "schedule.milestones": [1],
    "segmentation_augment.crop": [64, 64],
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.loggers": [],
}
SMALLER_BOXES = {"network.args.min_size": 96, "network.args.max_size": 128}
"""What of a command is made small: images, batch and run; nothing of the network."""


@dataclass(frozen=True)
class Tried:
    """What one command came to.

    Args:
        command: as it is printed.
        rows: of the tables that it is for.
        parameters: of the network.
        loss: of the step.
        seconds: that it took.
        fault: why it does not work; "" where it does.
    """

    command: str
    rows: tuple[str, ...]
    parameters: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    fault: str = ""


def recipe_of(command: str, more: dict[str, Any] | None = None) -> Recipe:
    """The recipe that a command ``convattn train --recipe NAME ...`` trains, with more settings over it.

    Example:
        >>> recipe_of("convattn train --recipe imagenet-san --model san10 epochs=3").epochs
        3
    """
    program, verb, *words = shlex.split(command)
    if (program, verb, words[0]) != ("convattn", "train", "--recipe"):
        raise ValueError(f"a command must begin with 'convattn train --recipe', got {command!r}")
    name, words, overrides = words[1], words[2:], {}
    while words and words[0].startswith("--"):
        key, value, *words = words
        if OPTIONS[key]:
            overrides[OPTIONS[key]] = int(value) if value.isdecimal() else value
    return load_recipe(name, overrides | parse_overrides(words) | (more or {}))


def try_commands(parts: Sequence[tuple[str, Part]]) -> Iterator[Tried]:
    """Try every command of some tables on the papers' own data, each once, after its backbone's.

    Args:
        parts: the tables' names with their rows.
    """
    classifiers, others = _by_backbone(parts)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder, chdir(folder):
        write_data(Path())
        for command, (setting, rows) in classifiers.items():
            following = others.get(command, {})
            weights = Path(setting.weights_folder, "latest", "weights.safetensors") if following else None
            yield _try(command, rows, weights)
            for other, rows_of_other in following.items():
                yield _try(other, rows_of_other)
            shutil.rmtree(setting.weights_folder, ignore_errors=True)


Rows = dict[str, list[str]]
"""Rows by their command."""


def _by_backbone(parts: Sequence[tuple[str, Part]]) -> tuple[dict[str, tuple[Setting, list[str]]], dict[str, Rows]]:
    """The classifiers' commands with their rows, and by these the commands that start from their weights."""
    classifiers: dict[str, tuple[Setting, list[str]]] = {}
    others: dict[str, Rows] = {}
    for name, part in parts:
        for row in part.rows:
            if row.setting is None:
                continue
            label, start = f"{name}, {row.label}", row.setting.backbone or row.setting
            known = classifiers.setdefault(start.command(), (start, []))
            if start is row.setting:
                known[1].append(label)
            else:
                rows = others.setdefault(start.command(), {})
                rows.setdefault(row.setting.command(), []).append(label)
    return classifiers, others


def _try(command: str, rows: Sequence[str], weights: Path | None = None) -> Tried:
    """Try one command, and write the network's weights where they are asked for."""
    begin = time.perf_counter()
    tried = Tried(command, tuple(rows))
    try:
        more = SMALLER | (SMALLER_BOXES if "--data coco/" in command else {})
        job = prepare(recipe_of(command, more), Path("runs"))
        before = {name: value.detach().clone() for name, value in job.model.state_dict().items()}
        loss = _step(job)
        _check_step(before, dict(job.model.named_parameters()))
        if weights is not None:
            weights.parent.mkdir(parents=True, exist_ok=True)
            write_weights(weights, _small(before), describe(job.recipe, job.data.classes))
        parameters = sum(parameter.numel() for parameter in job.model.parameters())
        return replace(tried, parameters=parameters, loss=loss, seconds=time.perf_counter() - begin)
    except (ValueError, RuntimeError, OSError, ArithmeticError, LookupError, TypeError) as error:
        return replace(tried, fault=f"{type(error).__name__}: {error}", seconds=time.perf_counter() - begin)
    finally:
        gc.collect()


def _step(job: Job) -> float:
    """Train one batch by Lightning's loop, and return its loss."""
    recipe, task, skip_log = job.recipe, task_of(job.recipe), SkipLog()
    sampler = task.sampler(recipe, job.data)
    module = task.module(job.model, recipe, job.data, sampler.batches_per_epoch)
    with quiet_lightning():
        trainer = make_trainer(
            recipe, callbacks=[], max_steps=1, logger=False, enable_checkpointing=False, limit_val_batches=0
        )
        trainer.fit(module, task.training_loader(recipe, job.data, sampler, skip_log))
    return module.train_loss


def _small(drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random weights, scaled down: where batch norms are fixed and have seen no image, deep networks overflow else."""
    return {name: (value * 0.1 if value.ndim > 1 else value).contiguous() for name, value in drawn.items()}


def _check_step(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    if not all(torch.isfinite(value).all() for value in after.values()):
        raise ArithmeticError("a parameter is not finite after the step")
    if all(torch.equal(value, before[name]) for name, value in after.items()):
        raise ArithmeticError("the step has changed no parameter")
