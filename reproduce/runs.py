"""Training runs by content: started, resumed after a kill, read back when they are done."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from convattn.data.writing import write_json
from convattn.tasks.config import Recipe
from convattn.tasks.finishing import Result, read_result
from convattn.tasks.recipes import load_recipe, override
from convattn.tasks.run_folder import RunFolder, write_start
from convattn.tasks.task import task_of
from reproduce.code import recipe_hash, source_hash
from reproduce.entries import Reader
from reproduce.settings import Setting

NOTE = "reproduce.json"
"""The file in a run's folder that says where it came from."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        setting: the recipe by name, and what it is given.
        seed: of it.
        recipe: resolved.
    """

    setting: Setting
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its folder's name: a hash of the resolved recipe with its seed, then one of the source."""
        return f"{recipe_hash(self.recipe)[:16]}-{source_hash()[:8]}"

    def folder(self, root: Path) -> RunFolder:
        """Where it lies under the folder of all runs."""
        return RunFolder(root / self.name)


def make_run(setting: Setting, seed: int) -> Run:
    """The run of a setting with a seed.

    Raises:
        UserError: a setting that the recipe does not take.

    Example:
        >>> make_run(Setting("digits", {"model": "san10"}), seed=3).recipe.seed
        3
    """
    return Run(setting, seed, replace(_resolved(setting.recipe, json.dumps(dict(setting.overrides))), seed=seed))


@cache
def _resolved(recipe: str, overrides: str) -> Recipe:
    return load_recipe(recipe, json.loads(overrides))


def execute(run: Run, root: Path, device: str | None, stopped: Callable[[], bool], commit: str) -> None:
    """Train a run from its last checkpoint to its end; one that is finished is left as it is.

    A finished run keeps its weights and no checkpoints: hundreds of runs would fill a disk.

    Args:
        run: which.
        root: the folder of all runs.
        device: the GPU to use, by number; None leaves that to Lightning.
        stopped: whether a person has asked to end.
        commit: of the code, for the record.

    Raises:
        RunInterrupted: after a Ctrl-C or SIGTERM; the next call goes on.
        UserError: for what a person can mend.
    """
    from convattn.tasks.interrupt import RunInterrupted
    from convattn.tasks.training import prepare, prepare_resume, train

    folder = run.folder(root)
    if read_result(folder) is not None:
        _drop_checkpoints(folder)
        return
    placed: dict[str, Any] = {} if device is None else {"trainer.accelerator": "gpu", "trainer.devices": f"{device},"}
    if folder.config.is_file():
        job = prepare_resume(folder, placed)
    else:
        recipe = run.recipe
        for key, value in placed.items():
            recipe = override(recipe, key, value)
        job = prepare(recipe, root)
        start = job

        def open_folder() -> RunFolder:
            (folder.last.parent).mkdir(parents=True, exist_ok=True)
            about = {"recipe": run.setting.recipe, "overrides": dict(run.setting.overrides), "seed": run.seed}
            write_json(folder.path / NOTE, {**about, "source": source_hash(), "commit": commit})
            figures = task_of(start.recipe).figures
            write_start(folder, start.recipe, start.data.classes, start.data.skipped, figures)
            return folder

        job = replace(job, open_folder=open_folder)
    if stopped():
        raise RunInterrupted
    train(job)
    _drop_checkpoints(folder)


def _drop_checkpoints(folder: RunFolder) -> None:
    shutil.rmtree(folder.last.parent, ignore_errors=True)


def epochs_done(folder: RunFolder) -> int:
    """How many epochs of a run are in its table."""
    with suppress(OSError), folder.metrics.open(encoding="utf-8") as file:
        return max(sum(1 for _ in file) - 1, 0)
    return 0


def find_finished(run: Run, root: Path, *, other_code: bool) -> RunFolder | None:
    """The folder of a run if it is done; where allowed also one that other source has trained, the newest."""
    folder = run.folder(root)
    if read_result(folder) is not None:
        return folder
    if not other_code:
        return None
    others = sorted(root.glob(f"{run.name.partition('-')[0]}-*"), key=lambda path: path.stat().st_mtime)
    done = [other for other in others if read_result(RunFolder(other)) is not None]
    return RunFolder(done[-1]) if done else None


def commit_of(folder: RunFolder) -> str:
    """The commit that a run's folder notes; "" where it notes none."""
    return str(read_json(folder.path / NOTE, dict).get("commit", ""))


T = TypeVar("T", dict[str, Any], list[Any])


def read_json(path: Path, kind: type[T]) -> T:
    """What a file holds; nothing where there is none, or it holds something else."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, kind) else kind()
    return kind()


def read_figures(folder: RunFolder, read: Reader) -> dict[str, float]:
    """What a finished run came to, by the quantities' keys: parts of one in per cent.

    ``"epochs"`` and ``"rates"`` give a number for every epoch, or every operator by depth: their keys end as in
    ``"box_AP at epoch 3"`` and ``"|α| at depth 0"``.
    """
    result = read_result(folder)
    if result is None:
        return {}
    if read == "epochs":
        return _by_epoch(folder)
    return _rates(folder) if read == "rates" else _figures(result)


def _figures(result: Result) -> dict[str, float]:
    found = {name: 100 * value for name, value in result.figures.items() if math.isfinite(value)}
    return found | {"parameters": result.parameters / 1e6}


def _by_epoch(folder: RunFolder) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in _rows(folder.metrics):
        for name, text in row.items():
            if text and name not in ("epoch", "step", "train_loss", "lr", "seconds"):
                found[f"{name} at epoch {row['epoch']}"] = 100 * float(text)
    return found


def _rates(folder: RunFolder) -> dict[str, float]:
    rows = _rows(folder.paths)
    last = max((int(row["epoch"]) for row in rows), default=0)
    found: dict[str, float] = {}
    for row in rows:
        if int(row["epoch"]) == last:
            alpha, beta, depth = abs(float(row["alpha"])), abs(float(row["beta"])), row["depth"]
            found |= {f"|α| at depth {depth}": alpha, f"|β| at depth {depth}": beta}
            if alpha > 0 and beta > 0:
                found[f"log |α/β| at depth {depth}"] = math.log(alpha / beta)
    return found


def _rows(path: Path) -> Sequence[Mapping[str, str]]:
    with suppress(OSError), path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
    return []
