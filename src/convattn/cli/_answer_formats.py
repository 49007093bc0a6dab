"""How ``convattn predict`` writes answers as text: a table for people, JSON, JSON lines, CSV, COCO's results, YOLO."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich.markup import escape
from rich.table import Table

from convattn.cli._results_folder import prepare
from convattn.cli._tables import make_console, print_table
from convattn.data.names import write_names

if TYPE_CHECKING:
    from convattn.tasks.answers import Answer
    from convattn.tasks.inputs import Inputs
    from convattn.tasks.records import Records


Format = Literal["table", "json", "jsonl", "csv", "coco", "yolo"]
"""How the answers are written."""


class Writer:
    """Takes one answer after the other."""

    def __init__(self, stream: TextIO, records: Records, inputs: Inputs) -> None:
        self.stream, self.records, self.inputs = stream, records, inputs

    def add(self, answer: Answer) -> None:
        """Take an answer."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still to be written."""


class TableWriter(Writer):
    """A row per image: the best class, its probability and those that follow."""

    def __init__(self, stream: TextIO, records: Records, inputs: Inputs) -> None:
        super().__init__(stream, records, inputs)
        self.console = make_console(file=stream)
        self.table = Table(box=None, pad_edge=False, header_style="bold")
        self.table.add_column("image", overflow="fold")
        self.table.add_column("class", style="bold", overflow="fold")
        self.table.add_column("probability", justify="right")
        self.table.add_column("then", overflow="fold")

    def add(self, answer: Answer) -> None:
        """Add a row."""
        first, *others = self.records.rows(answer)
        rest = ", ".join(f"{escape(one['class'])} {one['probability']:.1%}" for one in others)
        name = escape(self.inputs.name(answer.index))
        self.table.add_row(name, escape(first["class"]), f"{first['probability']:.1%}", rest)

    def close(self) -> None:
        """Print the table, whose columns are as wide as all rows ask."""
        if self.table.row_count:
            print_table(self.console, self.table)


class JsonWriter(Writer):
    """A list with an object per image, written one by one."""

    separator = "["

    def add(self, answer: Answer) -> None:
        """Write an object."""
        for one in self.objects(answer):
            self.stream.write(f"{self.separator}\n  {json.dumps(one, ensure_ascii=False)}")
            self.separator = ","

    def objects(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the objects of an answer."""
        return [{"file": self.inputs.name(answer.index), "predictions": self.records.rows(answer)}]

    def close(self) -> None:
        """End the list."""
        self.stream.write("[]\n" if self.separator == "[" else "\n]\n")


class CocoWriter(JsonWriter):
    """COCO's list of results: an object per box, mask or class of an image."""

    def objects(self, answer: Answer) -> list[dict[str, Any]]:
        """Return the results of an answer."""
        return self.records.coco(answer)


class JsonLinesWriter(JsonWriter):
    """An object per image, each on a line of its own."""

    def add(self, answer: Answer) -> None:
        """Write a line."""
        for one in self.objects(answer):
            self.stream.write(f"{json.dumps(one, ensure_ascii=False)}\n")

    def close(self) -> None:
        """Nothing is left to be written."""


class CsvWriter(Writer):
    """A line per image and class or object."""

    def __init__(self, stream: TextIO, records: Records, inputs: Inputs) -> None:
        super().__init__(stream, records, inputs)
        self._write("file", "rank", *records.columns)

    def add(self, answer: Answer) -> None:
        """Write the lines of an image."""
        for rank, row in enumerate(self.records.rows(answer), start=1):
            cells = (row[column] for column in self.records.columns)
            texts = (f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in cells)
            self._write(self.inputs.name(answer.index), str(rank), *texts)

    def _write(self, *cells: str) -> None:
        # Beside this end of lines Python quotes no "\r", which a reader takes for one.
        quoting = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
        csv.writer(self.stream, lineterminator="\n", quoting=quoting).writerow(cells)


WRITERS: dict[Format, type[Writer]] = {
    "table": TableWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
    "csv": CsvWriter,
    "coco": CocoWriter,
}


@contextmanager
def writing(form: Format, stream: TextIO, records: Records, inputs: Inputs) -> Iterator[Writer]:
    """Close the writer also where the run is broken off, so that what was found is there and well-formed."""
    writer = WRITERS[form](stream, records, inputs)
    try:
        yield writer
    finally:
        writer.close()


class YoloFolder:
    """A folder of YOLO's label files, with scores behind the boxes, and ``classes.txt``.

    Args:
        out: The folder.
        names: The name of what is written of each image, without an ending.
        inputs: The images.
        records: What makes lines of an answer.
    """

    def __init__(self, out: Path, names: list[str], inputs: Inputs, records: Records) -> None:
        self.out, self.names, self.inputs, self.records = out, names, inputs, records
        files = [one.path for one in inputs.entries]
        prepare(out, ["classes.txt", *(f"{name}.txt" for name in names)], files)
        (out / "classes.txt").write_text(write_names(records.loaded.classes), encoding="utf-8")

    def add(self, answer: Answer) -> None:
        """Write an image's file."""
        lines = self.records.yolo(answer, self.inputs.image(answer.index).size)
        text = "".join(f"{line}\n" for line in lines)
        (self.out / f"{self.names[answer.index]}.txt").write_text(text, encoding="utf-8")
