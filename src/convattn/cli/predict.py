"""``convattn predict``."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from convattn.cli._answer_formats import Format, Writer, YoloFolder, writing
from convattn.cli._options import Device, MinScore, Precision, Run, Trust, Tta
from convattn.cli._tables import list_skipped
from convattn.data.names import ESCAPED
from convattn.errors import UserError, naming_file

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile
    from convattn.tasks.answers import AnswerOptions
    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.inputs import Inputs


Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE|DIR...", help="Images, videos, folders, patterns, addresses, or - (stdin)."),
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Classes per image (classifiers).")]
Annotations = Annotated[
    Path | None,
    typer.Option(help="COCO file of the images, whose ids are taken; else the run's own.", show_default=False),
]
FormatName = Annotated[Format, typer.Option("--format", help="For people (table, or pictures) or programs.")]
Out = Annotated[
    Path | None,
    typer.Option(help="File to write, or folder, else predictions/ (pictures, yolo).", show_default=False),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", "--batch", min=1, help="Images at a time; else 64, or 1 where sizes differ."),
]


def predict(
    images: Images,
    run: Run = Path("runs/latest"),
    top_k: TopK = 5,
    min_score: MinScore = None,
    annotations: Annotations = None,
    format: FormatName = "table",
    out: Out = None,
    tta: Tta = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    precision: Precision = "float32",
    trust: Trust = False,
) -> None:
    """Say what is on images: their class, the objects on them, or the class of each pixel.

    [bold]Examples[/]

      convattn predict photo.jpg                 by runs/latest, the newest run

      convattn predict photos/ --top-k 3         all images below a folder

      convattn predict 'photos/**/*.jpg' https://example.org/photo.jpg

      find photos -name '*.png' | convattn predict -

      convattn predict photos/ --format json > answers.json

      convattn predict photos/ --run weights.safetensors --format csv --out a.csv

      convattn predict photos/ clip.mp4 --out found/     pictures, videos

      convattn predict photos/ --format coco --conf 0.01 > results.json

    A detector draws the objects on the images and writes annotations.json (COCO);
    a segmenter draws the classes and writes label PNGs to labels/. Of a video they
    write a video. --format json, jsonl, csv, coco and yolo write data alone: to
    stdout or the file of --out; yolo a label file an image, into the folder of
    --out, with a score behind each box.

    Images that cannot be read are listed on stderr and left out; exit code 2 where
    none could be read.
    """
    with tempfile.TemporaryDirectory(prefix="convattn-") as downloads:
        from convattn.tasks.inputs import find_inputs

        inputs = find_inputs(images, sys.stdin, Path(downloads))
        from convattn.tasks.answers import AnswerOptions
        from convattn.tasks.inference import load_model, with_tta
        from convattn.tasks.task import task_of

        loaded = load_model(run, device=device, trust=trust, precision=precision)
        loaded = with_tta(loaded) if tta else loaded
        options = AnswerOptions(run, min_score, annotations, top_k)
        if format == "table" and task_of(loaded.recipe).files:
            from convattn.cli._picture_folder import write_pictures

            skipped = write_pictures(loaded, inputs, out or Path("predictions"), options, batch_size)
        else:
            skipped = _write_data(loaded, inputs, format, out, options, batch_size)
        if skipped:
            list_skipped(f"{len(skipped)} of {len(inputs)} images could not be read and were left out:", skipped)
            if len(skipped) == len(inputs):
                raise typer.Exit(2)


def _write_data(
    loaded: "LoadedModel",
    inputs: "Inputs",
    form: Format,
    out: Path | None,
    options: "AnswerOptions",
    batch_size: int | None,
) -> list["SkippedFile"]:
    """Write the answers as data, and return the images left out."""
    from convattn.cli._picture_folder import unique_names
    from convattn.tasks.inference import predict as answers
    from convattn.tasks.task import task_of

    records = task_of(loaded.recipe).records(loaded, [one.place for one in inputs.entries], options)
    skipped: list[SkippedFile] = []

    def pass_on(writer: Writer | YoloFolder) -> None:
        for answer in answers(loaded, inputs, batch_size=batch_size):
            if answer.skipped is None:
                writer.add(answer)
            else:
                skipped.append(answer.skipped)

    if form in ("coco", "yolo") and form not in records.formats:
        raise UserError(
            f"--format {form} is not for {loaded.task}: take {', '.join(('json', 'csv', *records.formats))}"
        )
    if form == "yolo":
        pass_on(YoloFolder(out or Path("predictions"), unique_names(inputs), inputs, records))
    else:
        with _output(out) as stream, writing(form, stream, records, inputs) as writer:
            pass_on(writer)
    if remark := records.remark():
        print(remark, file=sys.stderr)
    return skipped


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
