"""How many training images a second the loaders give: class folders, tar shards, timm's reader of the same shards."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks import photos
from benchmarks.fresh import OnProgress, silent
from benchmarks.record import TIME, Check, Record, Series, to_json
from benchmarks.run import Run, record_of, require_quiet_machine, rounds_of
from convattn.data.transforms import train_transform
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import SkipLog, input_settings
from convattn.tasks.recipes import load_recipe
from convattn.tasks.task import task_of

FOLDERS, SHARDS, TIMM = "class folders", "tar shards", "timm's wds"
SIDE = 256
"""Of the images on the disk; they are cropped to ``Loading.size``."""


@dataclass(frozen=True, kw_only=True)
class Loading(Run):
    """What is asked for.

    Args:
        images: On the disk.
        size: Height and width of the crops.
        workers: Processes that load.
    """

    images: int = 4000
    size: int = 224
    workers: int = 1


def measure(run: Loading, on_progress: OnProgress = silent) -> Record:
    """Time whole epochs of training images, the sources in turns.

    Raises:
        UserError: the machine is busy.
        RuntimeError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        forms = photos.write(Path(folder), run.images, photos.draw(SIDE, "JPEG"), "jpg")
        places = [str(forms["class folders"]), str(forms["tar shards"])]
        return record_of(measure_here, run, on_progress, places=places)


def measure_here(run: dict[str, Any], places: list[str], on_progress: OnProgress = silent) -> str:
    """Measure in this process, which should be fresh; the record as JSON."""
    asked = Loading(**run)
    taken, where = require_quiet_machine(asked, on_progress)
    recipe = load_recipe("folder", _settings(asked, places[0]))
    sources: dict[str, Iterable[Any]] = {FOLDERS: _ours(recipe, places[0]), SHARDS: _ours(recipe, places[1])}
    checks = {FOLDERS: Check("right"), SHARDS: Check("right")}
    try:
        sources[TIMM] = _timms(asked, recipe, places[1])
        checks[TIMM] = Check("right")
    except (ImportError, AssertionError) as error:
        checks[TIMM] = Check("absent", note=f"needs webdataset: {error}")
    times: dict[str, list[float]] = {name: [] for name in sources}
    for number, name in rounds_of(asked.rounds + 1, sources, on_progress):
        seconds = _seconds_an_image(sources[name])
        if number:  # in the first turn workers start, and files come from the disk
            times[name].append(seconds)
    case = asked.facts("images", "size", "batch", "workers", "rounds") | {"side": SIDE, "base": FOLDERS}
    results = {name: {TIME: Series("s", tuple(values))} for name, values in times.items()}
    return to_json(Record("data", taken, where, case, results, checks))


def _settings(run: Loading, folder: str) -> dict[str, Any]:
    half = [0.5, 0.5, 0.5]
    return {
        "data.folder": folder,
        "data.image_size": run.size,
        "data.workers": run.workers,
        "data.mean": half,
        "data.std": half,
        "batch_size": run.batch,
    }


def _ours(recipe: Recipe, folder: str) -> Iterable[Any]:
    """Return the loader of ``convattn train``."""
    recipe = replace(recipe, data=replace(recipe.data, folder=folder, val_fraction=0.01))
    task = task_of(recipe)
    data = task.open_data(recipe)
    return task.training_loader(recipe, data, task.sampler(recipe, data), SkipLog())


def _timms(run: Loading, recipe: Recipe, folder: str) -> Iterable[Any]:
    """Return timm's reader of the shards with the same transform, in torch's own loader."""
    from timm.data import create_dataset

    split = f"train-{{000..{photos.SHARDS - 1:03}}}.tar|{run.images}"
    data = create_dataset("wds/", root=folder, split=split, is_training=True, batch_size=run.batch)
    data.transform = train_transform(*input_settings(recipe), recipe.augment)
    return DataLoader(data, batch_size=run.batch, num_workers=run.workers, persistent_workers=run.workers > 0)


def _seconds_an_image(source: Iterable[Any]) -> float:
    """Return the time of an epoch over its images."""
    begin, images = time.perf_counter(), 0
    for batch in source:
        images += len(batch[0])
    if not images:
        raise RuntimeError("the loader gave no image")
    return (time.perf_counter() - begin) / images
