"""The run folder: every file that training leaves behind, and how each survives a kill."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from convattn.data.names import ESCAPED, write_names
from convattn.data.types import SkippedFile
from convattn.data.writing import cell, write_table, write_text
from convattn.errors import UserError, names_its_file
from convattn.tasks.config import Recipe
from convattn.tasks.recipes import to_mapping

PATHS = ("epoch", "depth", "layer", "alpha", "beta")
SKIPPED = ("file", "reason")
PREDICTIONS = ("index", "name", "label", "predicted", "probability")


def metrics_columns(figures: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of ``metrics.csv`` for a task's figures.

    Example:
        >>> metrics_columns(["mean_iou"])
        ('epoch', 'step', 'train_loss', 'mean_iou', 'lr', 'seconds')
    """
    return ("epoch", "step", "train_loss", *figures, "lr", "seconds")


class _Place:
    """The path of a file or a folder of a run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, kind: type | None = None) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by name."""

    path: Path

    config = _Place("config.yaml")
    """The resolved recipe."""
    launch = _Place("launch.txt")
    """What started the run, where a launcher did, see :mod:`convattn.tasks.launches`."""
    classes = _Place("classes.txt")
    """The names of the classes, as :func:`convattn.data.names.read_names` reads them."""
    metrics = _Place("metrics.csv")
    """One row per epoch."""
    paths = _Place("paths.csv")
    """Alpha and beta of every ACmix layer, one row per layer and epoch."""
    skipped = _Place("skipped.csv")
    """The files that were left out."""
    predictions = _Place("predictions.csv")
    """The best weights' answers on the validation images."""
    label_maps = _Place("predictions")
    """A segmenter's answers on the validation images, one PNG each."""
    detections = _Place("detections.json")
    """A detector's answers on the validation images, as COCO results."""
    per_class = _Place("per_class.csv")
    """The figures of each class."""
    curves = _Place("curves.json")
    """A detector's precision by recall, for each class."""
    confusion = _Place("confusion.csv")
    """A segmenter's pixels by true (rows) and predicted class."""
    summary = _Place("summary.json")
    """How the run ended."""
    weights = _Place("weights.safetensors")
    """The best weights, for use."""
    last_weights = _Place("last.safetensors")
    """The weights of the last epoch, for use."""
    report = _Place("report.html")
    """The page that shows the run."""
    tensorboard = _Place("tensorboard")
    """TensorBoard's events."""
    last = _Place("checkpoints/last.ckpt")
    """The checkpoint that a resume continues from."""
    best = _Place("checkpoints/best.ckpt")
    """The checkpoint of the epoch with the best score."""


def create_run(root: Path, model: str) -> RunFolder:
    """Make a folder of its own for a run: ``root/<time>-<model>``."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{model.replace('/', '_').replace(':', '_')}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = _make_fresh(root, name)
        (path / "checkpoints").mkdir()
    except OSError as error:
        raise UserError(
            f"cannot make a run folder in {root}: {error.strerror}; give another place with --out"
        ) from error
    return RunFolder(path)


def open_run(path: Path) -> RunFolder:
    """Return an existing run.

    Raises:
        UserError: where there is no run.
    """
    if not path.exists():
        raise UserError(f"no such run: {path}{_runs_beside(path)}")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder (it has no config.yaml){_runs_beside(path)}")
    return RunFolder(path.resolve())


def write_start(
    run: RunFolder,
    recipe: Recipe,
    classes: Sequence[str],
    skipped: Iterable[SkippedFile],
    figures: Sequence[str],
) -> None:
    """Write what is known before the first step, the recipe last, since it makes the folder a run; then ``latest``."""
    write_text(run.classes, write_names(classes))
    write_table(run.skipped, SKIPPED, ([file.path, file.reason] for file in skipped))
    write_table(run.metrics, metrics_columns(figures), [])
    write_table(run.paths, PATHS, [])
    write_text(run.config, recipe_text(recipe))
    _point_latest(run.path.parent, run.path.name)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as a run's ``config.yaml``."""
    text: str = yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)
    return text


@names_its_file
def append_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Add rows to a CSV file; they are on the disk when this returns."""
    with path.open("a", encoding="utf-8", errors=ESCAPED, newline="") as file:
        csv.writer(file).writerows(rows)
        file.flush()
        os.fsync(file.fileno())


@names_its_file
def cut_table(path: Path, columns: Sequence[str], *, epochs: int) -> None:
    """Keep the rows of the first ``epochs`` epochs: those that a resume will not write again, whole ones only."""
    rows = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if set(columns) - {*(reader.fieldnames or columns)}:
                found = ", ".join(map(str, reader.fieldnames or ()))
                raise UserError(f"{path}: its columns are {found}, expected {', '.join(columns)}; delete it")
            for row in reader:
                if None in row or None in row.values() or not row["epoch"].isdecimal():
                    break
                if int(row["epoch"]) <= epochs:
                    rows.append([row[column] for column in columns])
    write_table(path, columns, rows)


def write_classes(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of each class as ``per_class.csv``."""
    write_table(run.per_class, list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


def _make_fresh(root: Path, name: str) -> Path:
    for number in range(1, 1000):
        path = root / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise UserError(f"{root} has a thousand runs of this second; give another place with --out")


def _point_latest(root: Path, name: str) -> None:
    """Make ``latest`` a link to the run; where links cannot be made, or it is a real folder, leave it."""
    latest, temporary = root / "latest", root / f".latest-{name}"
    if latest.exists() and not latest.is_symlink():
        return
    with suppress(OSError, NotImplementedError):
        temporary.symlink_to(name, target_is_directory=True)
        os.replace(temporary, latest)


def _runs_beside(path: Path) -> str:
    with suppress(OSError):
        runs = sorted(entry for entry in path.parent.iterdir() if (entry / "config.yaml").is_file())
        runs = [run for run in runs if not run.is_symlink()]
        if runs:
            return f"; the newest of the {len(runs)} runs in {path.parent} is {runs[-1]}"
    return "; give the folder that convattn train printed, such as runs/latest"
