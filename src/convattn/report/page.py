"""A run as one self-contained HTML page."""

import math
import os
import shlex
from pathlib import Path
from typing import Any, Literal, get_args

from convattn import __version__
from convattn.data.coco import DetectionImages
from convattn.data.names import ESCAPED
from convattn.data.segmentation import SegmentationImages
from convattn.data.types import LabelledImages
from convattn.errors import naming_file
from convattn.report.classification import classification_page
from convattn.report.curves import curves_html
from convattn.report.detection import detection_page
from convattn.report.markup import count, details, duration, escape, section, table
from convattn.report.rates import rates_html
from convattn.report.run import Run, read_run
from convattn.report.segmentation import segmentation_page
from convattn.report.style import CSS, PAGE
from convattn.report.task import TaskPage, Tile

SKIPPED_LIMIT = 500

FEW = 100
"""With fewer validation images than this it is said how little they tell."""

Task = Literal["classification", "detection", "instances", "segmentation"]


def write_report(run: Path, val: LabelledImages | DetectionImages | SegmentationImages) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The page shows what the folder holds; a run that was stopped early, or has no ACmix layer, has fewer sections.

    Args:
        run: The run folder; ``task`` in its ``config.yaml`` decides which page it gets.
        val: The validation images that the run's predictions count, of the task's type.

    Raises:
        TypeError: ``val`` is not of the type of the run's task.
    """
    record = read_run(Path(run))
    task = _task_page(record, val)
    title = f"{_model_name(record)} on {_data_name(record)}"
    body = _body(record, title, task)
    page = PAGE.substitute(title=escape(title), css=CSS, body=body, version=escape(__version__))
    target = Path(run) / "report.html"
    draft = target.with_suffix(".html.tmp")
    with naming_file(draft):
        draft.write_text(page, encoding="utf-8", errors=ESCAPED)
    os.replace(draft, target)
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


def _body(run: Run, title: str, task: TaskPage) -> str:
    settings = details("config.yaml", f"<pre>{escape(run.config_text)}</pre>") if run.config_text else ""
    parts = [
        _header(run, title, task),
        section("How it learned", curves_html(run.epochs, task, _best_epoch(run, task)), _learned(run, task)),
        *task.sections,
        section("Attention or convolution?", rates_html(run)),
        section("Use it", _commands(run, task)),
        section("Files left out", _skipped(run.skipped, task)),
        section("Settings", settings),
    ]
    return "\n".join(part for part in parts if part)


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


def _header(run: Run, title: str, task: TaskPage) -> str:
    kind, state = ("good", "finished") if run.finished else ("warn", "interrupted")
    planned = run.config.get("epochs")
    trained = f"{len(run.epochs)} of {planned}" if isinstance(planned, int) else str(len(run.epochs))
    best = _best_epoch(run, task)
    tiles = [
        *task.tiles,
        Tile("epochs", escape(trained)),
        Tile("best epoch", "–" if best is None else str(best)),
        Tile("parameters", count(run.number("parameters"))),
        Tile("classes", str(len(run.classes))),
        Tile("validated on", f"{task.validated or '–'}"),
        Tile("time", duration(run.number("seconds", run.epochs[-1].figure("seconds") if run.epochs else math.nan))),
    ]
    cells = "".join(
        f'<div class="{"main" if tile.main else ""}"><dt>{tile.name}</dt><dd>{tile.value}</dd></div>' for tile in tiles
    )
    hint = "" if run.finished else f" · go on with <code>{escape(_resume(run))}</code>"
    return (
        f'<header><div class="title"><h1>{escape(title)}</h1><span class="badge {kind}">{state}</span></div>'
        f'<p class="sub">{escape(run.folder.resolve().name)}{hint}</p><dl class="tiles">{cells}</dl></header>'
    )


def _best_epoch(run: Run, task: TaskPage) -> int | None:
    best = run.best(task.score)
    epoch = run.number("best_epoch", best.epoch if best else math.nan)
    return None if math.isnan(epoch) else int(epoch)


def _learned(run: Run, task: TaskPage) -> str:
    """Say which epoch was kept, and how little few images tell."""
    best, score = _best_epoch(run, task), dict(task.columns)[task.score]
    if best is None or not run.epochs:
        return ""
    loss = ", of equals that of the least loss" if "val_loss" in run.epochs[0].figures else ""
    kept = f"Dotted: epoch {best}, the best: the highest {score} after the warm-up{loss}, then the latest."
    if not 0 < task.validated < FEW:
        return kept
    images = "1 validation image says" if task.validated == 1 else f"{task.validated} validation images say"
    points = f": one of them is {100 / task.validated:.1f} points" if task.score == "val_accuracy" else ""
    return f"{kept} But {images} little{points}; on others the figures may be quite different."


def _resume(run: Run) -> str:
    return f"convattn train --resume {shlex.quote(str(run.folder))}"


def _commands(run: Run, task: TaskPage) -> str:
    folder = str(run.folder)
    commands = [
        (task.predict, f"convattn predict --run {shlex.quote(folder)} photo.jpg"),
        ("Measure it again", f"convattn val --run {shlex.quote(folder)}"),
        (
            "Train it again, from the same settings",
            f"convattn train --recipe {shlex.quote(os.path.join(folder, 'config.yaml'))}",
        ),
    ]
    if not run.finished:
        commands.insert(0, ("Go on training", _resume(run)))
    return "".join(f"<p>{name}</p><pre>{escape(command)}</pre>" for name, command in commands)


def _skipped(skipped: list[tuple[str, str]], task: TaskPage) -> str:
    if not skipped:
        return ""
    rows = table(("file", "reason"), skipped[:SKIPPED_LIMIT], caption="Files left out")
    more = f"<p>… and {len(skipped) - SKIPPED_LIMIT} more in skipped.csv.</p>" if len(skipped) > SKIPPED_LIMIT else ""
    files = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    return details(f"{files} {task.left_out}", rows + more)
