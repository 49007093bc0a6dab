"""``convattn val``."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from convattn.cli._options import AsJson, Device, Precision, Run, Trust, Tta
from convattn.cli._run_lines import caution
from convattn.cli._tables import counting, list_skipped, make_console, print_table
from convattn.data.names import counted, shortened
from convattn.data.remote import data_path
from convattn.data.writing import finite
from convattn.errors import UserError

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile, Split
    from convattn.tasks.answers import Scores
    from convattn.tasks.inference import LoadedModel

WORST_CLASSES = 20

COUNTS = ("objects", "pixels", "images", "right")
"""The columns of a table of classes that are no parts of one."""

Data = Annotated[str | None, typer.Option(help="Labelled images; without it the run's own.", show_default=False)]
Part = Annotated[Literal["val", "test"], typer.Option("--split", help="Part of the data: validation or test images.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images at a time; else 64, or 1 where sizes differ.")]


def val(
    run: Run = Path("runs/latest"),
    data: Data = None,
    split: Part = "val",
    as_json: AsJson = False,
    tta: Tta = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    precision: Precision = "float32",
    trust: Trust = False,
) -> None:
    """Measure a trained model on labelled images.

    [bold]Examples[/]

      convattn val                               runs/latest, on its own images

      convattn val --data photos/                on other images

      convattn val --split test                  its test images

      convattn val --json > scores.json

    A classifier is measured by its accuracy on photos/<class>/*.jpg, a detector by
    COCO's twelve figures on COCO annotations, a segmenter by its mIoU on images
    with label PNGs: on the validation part of a folder, on all where it has none.
    """
    from convattn.tasks.inference import evaluate, load_model, with_tta
    from convattn.tasks.task import task_of

    loaded = load_model(run, device=device, trust=trust, precision=precision)
    loaded = with_tta(loaded) if tta else loaded
    with counting("looking at the images") as progress:
        images, left_out, source = _open(loaded, run, data, split, progress)
    with counting("measuring") as progress:
        scores = evaluate(loaded, images, batch_size=batch_size, progress=progress)
    skipped, task = [*left_out, *scores.skipped], task_of(loaded.recipe)
    if as_json:
        record = {"model": loaded.name, "weights": str(loaded.source), "data": source, **task.record(scores)}
        record["skipped"] = [asdict(file) for file in skipped]
        print(json.dumps(finite(record), indent=2, ensure_ascii=False))
        return
    _print(loaded, scores, source, task.lines(scores))
    with suppress(ModuleNotFoundError):  # scipy, of convattn[train]
        for line in caution(scores.images, "image", task.interval(scores)):
            print(f"caution: {line}")
    if skipped:
        list_skipped(f"left out, since something is wrong with them: {len(skipped)}", skipped)


def _open(
    loaded: "LoadedModel", run: Path, data: str | None, split: "Split", progress: Callable[[int, int], None]
) -> tuple[Any, list["SkippedFile"], str]:
    """Return the images to measure on, what was left out and where the images come from."""
    from convattn.tasks.inference import own_recipe
    from convattn.tasks.sources import data_name
    from convattn.tasks.task import task_of

    recipe, task = own_recipe(run, {"data.bad": "skip"}), task_of(loaded.recipe)
    own = recipe.data.folder if recipe is not None else None
    is_own = own is not None and (data is None or data_path(data).resolve() == data_path(own).resolve())
    wanted = (own if split != "val" else None) if is_own else data
    other = None if wanted is None else data_path(wanted)
    if other is not None:
        classes, images, skipped = task.open_other(other, loaded.classes, recipe or loaded.recipe, progress, split)
        _check_classes(loaded, str(other), classes)
        return images, skipped, str(other) if split == "val" else f"{other}, its {split} images"
    if recipe is None:
        raise UserError(f"{run}: no run's config.yaml is beside it, so its images are not known; give some with --data")
    if split != "val":
        raise UserError(f"{data_name(recipe)} have no {split} images; give some with --data")
    found = task.open_data(recipe, progress)
    _check_classes(loaded, data_name(recipe), found.classes)
    return found.val, found.skipped, f"{data_name(recipe)}, its validation images"


def _check_classes(loaded: "LoadedModel", source: str, classes: list[str]) -> None:
    if classes != loaded.classes:
        raise UserError(
            f"{source}: its {len(classes)} classes ({shortened(classes, 5)}) are not the {len(loaded.classes)} of the"
            f" model ({shortened(loaded.classes, 5)}): give the data the same classes in the same order"
        )


def _print(loaded: "LoadedModel", scores: "Scores", source: str, lines: list[str]) -> None:
    from convattn.tasks.task import percent

    console = make_console()
    head = f"[bold]{escape(loaded.name)}[/] on {escape(source)}: {counted(scores.images, 'image')}"
    console.print("\n".join([head, *lines]), highlight=False, soft_wrap=True)
    columns = list(scores.per_class[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for column in columns[1:]:
        table.add_column("IoU" if column == "iou" else column.replace("_", " "), justify="right")
    measured = next(column for column in columns[1:] if column not in COUNTS)
    rows = sorted(scores.per_class, key=lambda row: math.inf if math.isnan(row[measured]) else row[measured])
    for row in rows[:WORST_CLASSES]:
        cells = (str(row[column]) if column in COUNTS else percent(row[column]) for column in columns[1:])
        table.add_row(escape(row["class"]), *cells)
    print_table(console, table)
    if len(rows) > WORST_CLASSES:
        console.print(f"the weakest {WORST_CLASSES} of {len(rows)} classes; --json has them all", highlight=False)
