"""What ``convattn val`` says of a detector or a segmenter."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from convattn.cli._tables import make_console, print_table
from convattn.data.names import counted
from convattn.errors import UserError, user_path

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile
    from convattn.tasks.config import Recipe
    from convattn.tasks.dense_inference import DenseScores
    from convattn.tasks.inference import LoadedModel

WORST_CLASSES = 20

NAMES = {"iou": "IoU", "mean_iou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
COUNTS = ("objects", "pixels")


def print_scores(loaded: LoadedModel, run: Path, data: Path | None, *, as_json: bool) -> None:
    """Measure a model on the validation images of its run, or of a folder, and print its figures."""
    from convattn.tasks.dense_inference import evaluate_detector, evaluate_segmenter

    console = make_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        looking = bar.add_task("looking at the images", total=None)
        images, left_out, source = _open(
            loaded, run, data, lambda done, total: bar.update(looking, completed=done, total=total)
        )
        bar.update(looking, visible=False)
        measuring = bar.add_task("measuring", total=len(images))
        measure: Any = evaluate_segmenter if loaded.task == "segmentation" else evaluate_detector
        scores = measure(loaded, images, progress=lambda done, _: bar.update(measuring, completed=done))
    skipped = [*left_out, *scores.skipped]
    if as_json:
        print(json.dumps(_record(loaded, scores, skipped, source), indent=2, ensure_ascii=False))
        return
    _print(loaded, scores, source)
    if skipped:
        lines = [f"  {file.path}: {file.reason}" for file in skipped]
        print("\n".join([f"left out, since something is wrong with them: {len(lines)}", *lines]), file=sys.stderr)


def _open(
    loaded: LoadedModel, run: Path, data: Path | None, progress: Callable[[int, int], None]
) -> tuple[Any, list[SkippedFile], str]:
    """Return the images to measure on, what was left out and where the images come from."""
    from convattn.tasks.dense_data import data_name
    from convattn.tasks.inference import run_of
    from convattn.tasks.recipes import read_recipe
    from convattn.tasks.task import task_of

    config = run_of(run) / "config.yaml"
    recipe = read_recipe(config, {"data.bad": "skip"}, trust=True) if config.is_file() else None
    own = recipe.data.folder if recipe is not None else None
    if data is not None and (own is None or user_path(data).resolve() != user_path(own).resolve()):
        classes, images, skipped = _open_other(loaded, recipe, data, progress)
        _check_classes(loaded, str(data), classes)
        return images, skipped, str(data)
    if recipe is None:
        raise UserError(f"{run}: no run's config.yaml is beside it, so its images are not known; give some with --data")
    found = task_of(recipe).open_data(recipe, progress)
    _check_classes(loaded, data_name(recipe), found.classes)
    return found.val, found.skipped, f"{data_name(recipe)}, its validation images"


def _open_other(
    loaded: LoadedModel, recipe: Recipe | None, data: Path, progress: Callable[[int, int], None]
) -> tuple[list[str], Any, list[SkippedFile]]:
    """Return the classes and the images of a folder that the model was not trained on, and what was left out."""
    from convattn.tasks.config import Recipe
    from convattn.tasks.dense_data import open_held_out_detection, open_held_out_segmentation

    if loaded.task == "segmentation":
        recipe = recipe or Recipe(loaded.name, task="segmentation")
        return open_held_out_segmentation(data, loaded.classes, recipe, progress)
    return open_held_out_detection(data, "masks" if loaded.task == "instances" else "boxes", progress)


def _check_classes(loaded: LoadedModel, source: str, classes: list[str]) -> None:
    if classes != loaded.classes:
        raise UserError(
            f"{source}: its {len(classes)} classes ({_some(classes)}) are not the {len(loaded.classes)} of the model"
            f" ({_some(loaded.classes)}): give the data the same classes in the same order"
        )


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _record(loaded: LoadedModel, scores: DenseScores, skipped: list[SkippedFile], source: str) -> dict[str, Any]:
    def finite(row: dict[str, Any]) -> dict[str, Any]:
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}

    return {
        "model": loaded.name,
        "weights": str(loaded.source),
        "data": source,
        "images": scores.images,
        "figures": finite(scores.figures),
        "per_class": [finite(row) for row in scores.per_class],
        "skipped": [asdict(file) for file in skipped],
    }


def _print(loaded: LoadedModel, scores: DenseScores, source: str) -> None:
    console = make_console()
    console.print(
        f"[bold]{escape(loaded.name)}[/] on {escape(source)}: {counted(scores.images, 'image')}", highlight=False
    )
    for prefix in ("box_", "mask_", ""):
        figures = {name: value for name, value in scores.figures.items() if _prefix(name) == prefix}
        if figures:
            shown = "  ".join(
                f"{_name(name.removeprefix(prefix))} {_percent(value)}" for name, value in figures.items()
            )
            console.print(f"{prefix.rstrip('_')} {shown}".strip(), highlight=False, soft_wrap=True)
    columns = list(scores.per_class[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for column in columns[1:]:
        table.add_column(_name(column.replace("_", " ")), justify="right")
    measured = next(column for column in columns[1:] if column not in COUNTS)
    rows = sorted(scores.per_class, key=lambda row: math.inf if math.isnan(row[measured]) else row[measured])
    for row in rows[:WORST_CLASSES]:
        cells = (str(row[column]) if column in COUNTS else _percent(row[column]) for column in columns[1:])
        table.add_row(escape(row["class"]), *cells)
    print_table(console, table)
    if len(rows) > WORST_CLASSES:
        console.print(f"the weakest {WORST_CLASSES} of {len(rows)} classes; --json has them all", highlight=False)


def _prefix(name: str) -> str:
    return next((prefix for prefix in ("box_", "mask_") if name.startswith(prefix)), "")


def _name(key: str) -> str:
    return NAMES.get(key, key)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
