"""``convattn predict``."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from convattn.cli._tables import make_console, print_table
from convattn.data.names import ESCAPED
from convattn.errors import UserError, naming_file

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile
    from convattn.tasks.inference import Prediction

HELP = """Say what is on images: their class, the objects on them, or the class of each pixel.

[bold]Examples[/]

  convattn predict photo.jpg                 by runs/latest, the newest run

  convattn predict photos/ --top-k 3         all images below a folder

  convattn predict photos/ --format json > answers.json

  convattn predict photos/ --run weights.safetensors --format csv --out a.csv

  convattn predict photos/ --out found/      with a detector or a segmenter

A detector draws the objects on the images and writes annotations.json (COCO);
a segmenter draws the classes and writes label PNGs to labels/.

Images that cannot be read are listed on stderr and left out; exit code 2 where
none could be read.
"""


class Format(str, Enum):
    """How the answers are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Writer(Protocol):
    """Takes one answer after the other."""

    def add(self, prediction: "Prediction") -> None:
        """Take an answer."""

    def close(self) -> None:
        """Write what is still to be written."""


Images = Annotated[list[Path], typer.Argument(metavar="IMAGE|DIR", help="Images, or folders of them.")]
Run = Annotated[Path, typer.Option(help="Run folder, weights.safetensors, checkpoint or exported file.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Classes per image (classifiers).")]
MinScore = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Weaker objects are left out (detectors); else the weights' own.", show_default=False
    ),
]
Annotations = Annotated[
    Path | None,
    typer.Option(help="COCO file of the images, whose ids are taken; else the run's own.", show_default=False),
]
FormatOption = Annotated[Format, typer.Option("--format", help="For people or programs (classifiers).")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="File to write (classifiers), or folder, else predictions/ (detectors, segmenters).", show_default=False
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Let the weights' file fetch networks: hf-hub:...")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images at a time; else 64, or 1 where sizes differ.")]


def predict(
    images: Images,
    run: Run = Path("runs/latest"),
    top_k: TopK = 5,
    min_score: MinScore = None,
    annotations: Annotations = None,
    format: FormatOption = Format.TABLE,
    out: Out = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    trust: Trust = False,
) -> None:
    """Say what is on images."""
    files = find_images(images)
    from convattn.data.types import SkippedFile
    from convattn.tasks.inference import load_model, predict_images
    from convattn.tasks.task import PictureOptions, task_of

    loaded = load_model(run, device=device, trust=trust)
    skipped: list[SkippedFile] = []
    written = task_of(loaded.recipe).files
    if written:
        from convattn.cli._picture_folder import write_pictures

        if format is not Format.TABLE:
            raise UserError(
                f"--format {format.value} is for classifiers; this model writes {written}: leave --format out"
            )
        options = PictureOptions(run, min_score, annotations)
        skipped = write_pictures(loaded, files, out or Path("predictions"), options, batch_size)
        _list_skipped(skipped, len(files))
        return
    with _output(out) as stream, _writing(format, stream) as writer:
        for answer in predict_images(loaded, files, top_k=top_k, batch_size=batch_size):
            if isinstance(answer, SkippedFile):
                skipped.append(answer)
            else:
                writer.add(answer)
    _list_skipped(skipped, len(files))


predict.__doc__ = HELP


def find_images(paths: list[Path]) -> list[Path]:
    """Return the files that are named, and all images in the folders that are."""
    from convattn.data.folder import list_images

    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = list_images(path)
        if not found:
            raise UserError(f"{path}: no images in this folder; name images, or a folder that holds some")
        files += [path / name for name in found]
    return files


class TableWriter:
    """A row per image: the best class, its probability and those that follow."""

    def __init__(self, stream: TextIO) -> None:
        self.console = make_console(file=stream)
        self.table = Table(box=None, pad_edge=False, header_style="bold")
        self.table.add_column("image", overflow="fold")
        self.table.add_column("class", style="bold", overflow="fold")
        self.table.add_column("probability", justify="right")
        self.table.add_column("then", overflow="fold")

    def add(self, prediction: "Prediction") -> None:
        """Add a row."""
        pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))
        rest = ", ".join(f"{escape(name)} {probability:.1%}" for name, probability in pairs[1:])
        name, probability = pairs[0]
        self.table.add_row(escape(prediction.file), escape(name), f"{probability:.1%}", rest)

    def close(self) -> None:
        """Print the table, whose columns are as wide as all rows ask."""
        if self.table.row_count:
            print_table(self.console, self.table)


class JsonWriter:
    """A list with an object per image, written one by one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.separator = "["

    def add(self, prediction: "Prediction") -> None:
        """Write an object."""
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        classes = [{"class": name, "probability": round(probability, 6)} for name, probability in pairs]
        line = json.dumps({"file": prediction.file, "predictions": classes}, ensure_ascii=False)
        self.stream.write(f"{self.separator}\n  {line}")
        self.separator = ","

    def close(self) -> None:
        """End the list."""
        self.stream.write("[]\n" if self.separator == "[" else "\n]\n")


class CsvWriter:
    """A line per image and class."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._write("file", "rank", "class", "probability")

    def add(self, prediction: "Prediction") -> None:
        """Write the lines of an image."""
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        for rank, (name, probability) in enumerate(pairs, start=1):
            self._write(prediction.file, str(rank), name, f"{probability:.6f}")

    def close(self) -> None:
        """Nothing is left to be written."""

    def _write(self, *cells: str) -> None:
        # Beside this end of lines Python quotes no "\r", which a reader takes for one.
        quoting = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
        csv.writer(self.stream, lineterminator="\n", quoting=quoting).writerow(cells)


@contextmanager
def _writing(format: Format, stream: TextIO) -> Iterator[Writer]:
    """Close the writer also where the run is broken off, so that what was found is there and well-formed."""
    writer: Writer = {Format.TABLE: TableWriter, Format.JSON: JsonWriter, Format.CSV: CsvWriter}[format](stream)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        stream = out.open("w", encoding="utf-8", errors=ESCAPED, newline="")
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; give --out a file in a folder of yours"
        ) from error
    with naming_file(out), stream:
        yield stream


def _list_skipped(skipped: list["SkippedFile"], total: int) -> None:
    """Name the images that were left out, on stderr; exit with 2 where there were no others."""
    if not skipped:
        return
    lines = [f"  {file.path}: {file.reason}" for file in skipped]
    head = f"{len(skipped)} of {total} images could not be read and were left out:"
    print("\n".join([head, *lines]), file=sys.stderr)
    if len(skipped) == total:
        raise typer.Exit(2)
