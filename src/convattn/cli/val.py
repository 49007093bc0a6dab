"""``convattn val``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from convattn.cli._tables import make_console, print_table
from convattn.data.names import counted
from convattn.errors import UserError, user_path

if TYPE_CHECKING:
    from convattn.data.types import LabelledImages, SkippedFile
    from convattn.tasks.inference import Evaluation, LoadedModel

WORST_CLASSES = 20

HELP = """Measure a trained model on labelled images.

[bold]Examples[/]

  convattn val                               runs/latest, on its own images

  convattn val --data photos/                on other images

  convattn val --json > scores.json

A classifier is measured by its accuracy on photos/<class>/*.jpg, a detector by
COCO's twelve figures on COCO annotations, a segmenter by its mIoU on images
with label PNGs: on the validation part of a folder, on all where it has none.
"""

Run = Annotated[Path, typer.Option(help="Run folder, weights.safetensors, checkpoint or exported file.")]
Data = Annotated[Path | None, typer.Option(help="Labelled images; without it the run's own.", show_default=False)]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time (classifiers).")]


def val(
    run: Run = Path("runs/latest"),
    data: Data = None,
    as_json: AsJson = False,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    trust: Trust = False,
) -> None:
    """Measure a trained model on labelled images."""
    from convattn.tasks.inference import evaluate, load_model

    loaded = load_model(run, device=device, trust=trust)
    if loaded.task != "classification":
        from convattn.cli._dense_scores import print_scores

        print_scores(loaded, run, data, as_json=as_json)
        return
    console = make_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        looking = bar.add_task("looking at the images", total=None)
        images, skipped, source = _open(run, data, loaded)
        bar.update(looking, visible=False)
        measuring = bar.add_task("measuring", total=len(images))
        scores = evaluate(
            loaded, images, batch_size=batch_size, progress=lambda done, _: bar.update(measuring, completed=done)
        )
    skipped = [*skipped, *scores.skipped]
    if as_json:
        print(json.dumps(_record(loaded, scores, skipped, source), indent=2, ensure_ascii=False))
        return
    _print_scores(loaded, scores, source)
    if skipped:
        lines = [f"  {file.path}: {file.reason}" for file in skipped]
        head = f"left out, since they cannot be read: {len(skipped)}"
        print("\n".join([head, *lines]), file=sys.stderr)


val.__doc__ = HELP


def _open(run: Path, data: Path | None, loaded: "LoadedModel") -> tuple["LabelledImages", list["SkippedFile"], str]:
    """Return the images to measure on, the files that were left out and where the images come from."""
    from convattn.data.folder import open_held_out
    from convattn.tasks.inference import run_of
    from convattn.tasks.loaders import open_data
    from convattn.tasks.recipes import read_recipe

    config = run_of(run) / "config.yaml"
    # of the recipe the images are taken, no network is built
    recipe = read_recipe(config, trust=True) if config.is_file() else None
    own = recipe.data.folder if recipe is not None else None
    if data is not None and (own is None or user_path(data).resolve() != user_path(own).resolve()):
        images, skipped = open_held_out(data, loaded.classes)
        return images, skipped, str(data)
    if recipe is None:
        raise UserError(f"{run}: no run's config.yaml is beside it, so its images are not known; give some with --data")
    found = open_data(recipe)
    if found.classes != loaded.classes:
        raise UserError(
            f"{own}: its classes ({_some(found.classes)}) are not those of the model "
            f"({_some(loaded.classes)}); put the folders back as they were, or give other images with --data"
        )
    return found.val, found.skipped, f"{own or 'the digits'}, its validation images"


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _record(
    loaded: "LoadedModel", scores: "Evaluation", skipped: list["SkippedFile"], source: str
) -> dict[str, object]:
    return {
        "model": loaded.name,
        "weights": str(loaded.source),
        "data": source,
        "images": scores.images,
        "top1": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "per_class": [{**asdict(one), "accuracy": one.accuracy} for one in scores.per_class],
        "skipped": [asdict(file) for file in skipped],
    }


def _print_scores(loaded: "LoadedModel", scores: "Evaluation", source: str) -> None:
    console = make_console()
    console.print(
        f"[bold]{escape(loaded.name)}[/] on {escape(source)}: {counted(scores.images, 'image')}", highlight=False
    )
    console.print(
        f"top-1 [bold]{scores.top1:.2%}[/]   top-5 {scores.top5:.2%}   loss {scores.loss:.4f}", highlight=False
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("accuracy", "right", "images"):
        table.add_column(name, justify="right")
    measured = [(one.accuracy, one) for one in scores.per_class if one.accuracy is not None]
    measured.sort(key=lambda pair: pair[0])
    for accuracy, one in measured[:WORST_CLASSES]:
        table.add_row(escape(one.name), f"{accuracy:.1%}", str(one.correct), str(one.images))
    print_table(console, table)
    if len(measured) > WORST_CLASSES:
        console.print(f"the weakest {WORST_CLASSES} of {len(measured)} classes; --json has them all", highlight=False)
