"""A run as one self-contained HTML page."""

import math
import os
import shlex
from pathlib import Path
from typing import Any, Literal, get_args

from convattn.data.coco import DetectionImages
from convattn.data.names import counted
from convattn.data.segmentation import SegmentationImages
from convattn.data.types import LabelledImages
from convattn.data.writing import write_text
from convattn.report.classification import classification_page
from convattn.report.curves import curves, epochs_table
from convattn.report.detection import detection_page
from convattn.report.rates import rates_charts, rates_table
from convattn.report.run import Run, read_run
from convattn.report.segmentation import segmentation_page
from convattn.report.task import Gallery, Table, TaskPage, Tile
from convattn.report.templates import render
from convattn.report.text import count, duration

SKIPPED_LIMIT = 500

FEW = 100
"""With fewer validation images than this it is said how little they tell."""

Task = Literal["classification", "detection", "instances", "segmentation"]


def write_report(
    run: Path,
    val: LabelledImages | DetectionImages | SegmentationImages,
    *,
    seen: Gallery | None = None,
    looks: Gallery | None = None,
) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The page shows what the folder holds; a run that was stopped early, or has no ACmix layer, has fewer sections.

    Args:
        run: The run folder; ``task`` in its ``config.yaml`` decides which page it gets.
        val: The validation images that the run's predictions count, of the task's type.
        seen: Training images as the network sees them.
        looks: What the network looks at in some validation images.

    Raises:
        TypeError: ``val`` is not of the type of the run's task.
    """
    record = read_run(Path(run))
    task = _task_page(record, val)
    best = _best_epoch(record, task)
    content = {
        "title": f"{_model_name(record)} on {_data_name(record)}",
        "run": record,
        "task": task,
        "tiles": _tiles(record, task, best),
        "learned": _learned(record, task, best),
        "curves": curves(record.epochs, task, best),
        "epochs": epochs_table(record.epochs, task, best),
        "rates": rates_charts(record),
        "last_rates": rates_table(record),
        "resume": _resume(record),
        "seen": seen,
        "looks": looks,
        "commands": _commands(record, task),
        "skipped": Table("Files left out", ("file", "reason"), record.skipped[:SKIPPED_LIMIT]),
        **task.content,
    }
    page = render(task.template, content)
    target = Path(run) / "report.html"
    write_text(target, page)
    return target


def _task_page(run: Run, val: Any) -> TaskPage:
    task = run.config.get("task") or _task_of(run, val)
    if task in ("detection", "instances") and isinstance(val, DetectionImages):
        return detection_page(run, val, "mask" if task == "instances" else "box")
    if task == "segmentation" and isinstance(val, SegmentationImages):
        return segmentation_page(run, val)
    if task == "classification" and not isinstance(val, DetectionImages | SegmentationImages):
        return classification_page(run, val)
    if task not in get_args(Task):
        raise TypeError(f"{run.folder}: the task {task!r} has no page; tasks are {', '.join(get_args(Task))}")
    raise TypeError(
        f"{run.folder} is a run of {task}, its validation images came as {type(val).__name__}: open them with the "
        "run's own settings"
    )


def _task_of(run: Run, val: Any) -> Task:
    """Return the task of a run whose settings do not say it, as older ones or half-written ones."""
    if isinstance(val, SegmentationImages):
        return "segmentation"
    if isinstance(val, DetectionImages):
        masks = any("mask_AP" in row.figures for row in run.epochs) or "mask_AP" in run.best_figures("box_AP")
        return "instances" if masks else "detection"
    return "classification"


def _model_name(run: Run) -> str:
    """Return the model, under its head where it has one: "faster_rcnn, acmix_resnet14"."""
    model = str(run.config.get("model") or "model")
    network = run.config.get("network")
    head = network.get("head") if isinstance(network, dict) else None
    return f"{head} with {model}" if head else model


def _data_name(run: Run) -> str:
    data = run.config.get("data")
    settings = data if isinstance(data, dict) else {}
    folder = settings.get("folder")
    if folder:
        return Path(str(folder)).name or str(folder)
    return "digit scenes" if settings.get("embedded") == "scenes" else "scikit-learn's digits"


def _tiles(run: Run, task: TaskPage, best: int | None) -> list[Tile]:
    planned = run.config.get("epochs")
    trained = f"{len(run.epochs)} of {planned}" if isinstance(planned, int) else str(len(run.epochs))
    seconds = run.number("seconds", run.epochs[-1].figure("seconds") if run.epochs else math.nan)
    return [
        *task.tiles,
        Tile("epochs", trained),
        Tile("best epoch", "–" if best is None else str(best)),
        Tile("parameters", count(run.number("parameters"))),
        Tile("classes", str(len(run.classes))),
        Tile("validated on", f"{task.validated or '–'}"),
        Tile("time", duration(seconds)),
    ]


def _best_epoch(run: Run, task: TaskPage) -> int | None:
    best = run.best(task.score)
    epoch = run.number("best_epoch", best.epoch if best else math.nan)
    return None if math.isnan(epoch) else int(epoch)


def _learned(run: Run, task: TaskPage, best: int | None) -> str:
    """Say which epoch was kept, and how little few images tell."""
    score = dict(task.columns)[task.score]
    if best is None or not run.epochs:
        return ""
    loss = ", of equals that of the least loss" if "val_loss" in run.epochs[0].figures else ""
    kept = f"Dotted: epoch {best}, the best: the highest {score} after the warm-up{loss}, then the latest."
    if not 0 < task.validated < FEW:
        return kept
    images = f"{counted(task.validated, 'validation image')} {'says' if task.validated == 1 else 'say'}"
    points = f": one of them is {100 / task.validated:.1f} points" if task.score == "val_accuracy" else ""
    return f"{kept} But {images} little{points}; on others the figures may be quite different."


def _resume(run: Run) -> str:
    return f"convattn train --resume {shlex.quote(str(run.folder))}"


def _commands(run: Run, task: TaskPage) -> list[tuple[str, str]]:
    folder, config = shlex.quote(str(run.folder)), shlex.quote(os.path.join(run.folder, "config.yaml"))
    commands = [
        (task.predict, f"convattn predict --run {folder} photo.jpg"),
        ("Measure it again", f"convattn val --run {folder}"),
        ("Train it again, from the same settings", f"convattn train --recipe {config}"),
    ]
    return commands if run.finished else [("Go on training", _resume(run)), *commands]
