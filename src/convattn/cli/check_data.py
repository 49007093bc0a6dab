"""``convattn check-data``."""

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from convattn.cli._options import AsJson
from convattn.cli._tables import counting, make_console, say

if TYPE_CHECKING:
    from convattn.data.checks import Checked
    from convattn.data.problems import Problem


class Form(str, Enum):
    """What a data set can be written as: an enumeration: not every typer takes a Literal inside a tuple."""

    COCO = "coco"


NOTES = 5
"""How many notes of each part are shown, unless all are asked for."""

Data = Annotated[
    str,
    typer.Argument(help="Folder, COCO file, data.yaml, table, tar file, URL or hfds/NAME.", show_default=False),
]
To = Annotated[
    tuple[Form, Path] | None,
    typer.Option(
        "--to", metavar="coco OUT", help="Write the boxes and masks as COCO into a new folder.", show_default=False
    ),
]
Images = Annotated[Path | None, typer.Option(help="Folder of a COCO file's images.", show_default=False)]
BoxesOnly = Annotated[bool, typer.Option("--boxes", help="Ask for boxes alone, as --task detection does.")]
Reduce = Annotated[
    bool | None,
    typer.Option(
        "--reduce-zero-label/--keep-zero-label",
        help="Whether id 0 of label PNGs means not labelled; as in ADE20K's folders by default.",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option(min=0, help="Lines of each part's problems; 0 shows all, notes too.")]


def check_data(
    data: Data,
    images: Images = None,
    boxes: BoxesOnly = False,
    reduce_zero_label: Reduce = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    to: To = None,
) -> None:
    """Look through a data set before training does, and list what is wrong by file and id.

    Known are COCO annotations, YOLO's data.yaml, Pascal VOC, images with label PNGs, folders of images by class,
    tables (CSV, Parquet), tar shards and Hugging Face data sets. The exit code is 1 where something is wrong.

    [bold]Examples[/]

      convattn check-data coco/                  both annotation files and all images

      convattn check-data coco/annotations/instances_val2017.json --images val2017/

      convattn check-data photos/ --json > problems.json

      convattn check-data data.yaml --to coco out/       write it as COCO
    """
    from convattn.data.checks import CheckOptions
    from convattn.data.checks import check_data as check
    from convattn.data.problems import errors

    if to is not None:
        _write(data, to[1], boxes)
    options = CheckOptions(images, "boxes" if boxes else None, reduce_zero_label)
    with counting("looking at the files") as progress:
        found = check(data, options, progress=progress)
    if as_json:
        print(json.dumps([asdict(part) for part in found], indent=2, ensure_ascii=False))
    else:
        _print_parts(found, limit)
    if any(errors(part.problems) for part in found):
        raise typer.Exit(1)


def _write(data: str, out: Path, boxes: bool) -> None:
    from convattn.data.coco_writing import write_coco

    with counting("writing") as progress:
        files = write_coco(data, out, wanted="boxes" if boxes else None, progress=progress)
    say(make_console(stderr=True), *(f"written: {file}" for file in files))


def _print_parts(found: list["Checked"], limit: int) -> None:
    from convattn.data.problems import errors

    console = make_console()
    for part in found:
        counts = ", ".join(f"{count} {_singular(name) if count == 1 else name}" for name, count in part.counts.items())
        console.print(
            f"[bold]{escape(part.name)}[/]: {counts or 'nothing can be used'}", highlight=False, soft_wrap=True
        )
        wrong = errors(part.problems)
        _print_some(console, "[bold red]problems[/]", wrong, limit)
        notes = [one for one in part.problems if one.level == "note"]
        _print_some(console, "[bold]notes[/]", notes, min(limit, NOTES))
    wrong = [one for part in found for one in errors(part.problems)]
    if wrong:
        without = "" if any(one.level == "fatal" for one in wrong) else "; or train without them: --skip-bad"
        console.print(f"{len(wrong)} to mend{without}", highlight=False)
    else:
        console.print("nothing is wrong", highlight=False)


def _print_some(console: Console, title: str, problems: list["Problem"], limit: int) -> None:
    if not problems:
        return
    console.print(f"{title}: {len(problems)}", highlight=False)
    shown = problems[:limit] if limit else problems
    for one in shown:
        console.print(f"  {escape(str(one))}", highlight=False, soft_wrap=True)
    if len(shown) < len(problems):
        console.print(f"  and {len(problems) - len(shown)} more: --limit 0 shows all", highlight=False)


def _singular(name: str) -> str:
    return "class" if name == "classes" else name.removesuffix("s")
