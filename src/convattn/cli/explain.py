"""``convattn explain``."""

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convattn.cli._options import Device, MinScore, RunArgument, Trust
from convattn.cli._training_packages import training_packages
from convattn.errors import UserError

if TYPE_CHECKING:
    from convattn.report.looks import Look

ImagePath = Annotated[str, typer.Argument(metavar="IMAGE", help="Image file or address.")]
Pixel = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="X Y",
        help="Pixel of the image whose attention is shown; else where Grad-CAM is highest.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="HTML file to write; else IMAGE's name and -explained.html.", show_default=False)
]


def explain(
    run: RunArgument,
    image: ImagePath,
    pixel: Pixel = None,
    out: Out = None,
    min_score: MinScore = None,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Show what a network looks at in an image: one HTML page.

    [bold]Examples[/]

      convattn explain runs/latest photo.jpg

      convattn explain runs/latest photo.jpg --pixel 120 80 --out look.html

    The page has the answer, Grad-CAM, what one pixel attends to in each attention
    layer, and how much the attention and the convolution of ACmix and X-volution
    add at each pixel. A network without such layers has Grad-CAM alone.
    """
    with tempfile.TemporaryDirectory(prefix="convattn-") as downloads, training_packages("explain"):
        from convattn.tasks.inputs import find_inputs

        inputs = find_inputs([image], sys.stdin, Path(downloads))
        if len(inputs) != 1:
            raise UserError(f"{image}: holds {len(inputs)} images; explain takes one")
        from convattn.report.looks import LookPage, write_look
        from convattn.report.task import Table
        from convattn.tasks.answers import AnswerOptions
        from convattn.tasks.explaining import Explained, Photo
        from convattn.tasks.inference import load_model

        name = inputs.name(0)
        loaded = load_model(run, device=device, trust=trust)
        explained = Explained(loaded, Photo.of(inputs.image(0), name), AnswerOptions(run, min_score))
        look = explained.look(pixel)
        out = out or Path(f"{inputs.entries[0].stem}-explained.html")
        table = Table("The answer", explained.records.columns, [list(row.values()) for row in explained.rows])
        commands = [
            ("What another pixel attends to", _another(run, name, out)),
            (
                "Ask the model for its answer alone",
                f"convattn predict --run {shlex.quote(str(run))} {shlex.quote(name)}",
            ),
        ]
        write_look(out, LookPage(look, f"{loaded.name}, {loaded.source}", table, commands))
    print("\n".join(_lines(look, out)))


def _lines(look: "Look", out: Path) -> list[str]:
    other = "; other pixels: --pixel X Y" if look.attention else ""
    lines = [f"{look.name}: {look.said}", look.remark, f"page        {out}"]
    return [*filter(None, lines), f"next        open {out} in a browser{other}"]


def _another(run: Path, image: str, out: Path) -> str:
    return shlex.join(["convattn", "explain", str(run), image, "--pixel", "10", "10", "--out", str(out)])
