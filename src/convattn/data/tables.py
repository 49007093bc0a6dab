"""Tables of images: CSV, TSV or Parquet with the columns path and label, and split where there are parts."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.folder import SPLIT_WORDS
from convattn.data.forms import ClassList, PairList
from convattn.data.images import is_file_name
from convattn.data.names import counted, name_some
from convattn.data.numbering import class_names
from convattn.data.pair_layout import read_classes as named_classes
from convattn.data.problems import Problem
from convattn.data.types import Named, Pair, SkippedFile, Split
from convattn.errors import UserError, first_line, needing

ENDINGS = (".csv", ".tsv", ".parquet")

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_id"),
    "label": ("label", "class", "class_name", "category", "target", "mask", "label_path", "mask_path"),
    "split": ("split", "subset", "partition", "fold", "set"),
}
"""The names of the columns that are looked for, the likeliest first; case does not count."""

BOXES = {"xmin", "ymin", "xmax", "ymax", "bbox", "x_min", "y_min", "x1", "y1"}

LAYOUT = """expected a first line that names the columns, such as
  path,label,split
  images/1.jpg,cat,train
  images/2.jpg,dog,val
paths are below the table's folder; without split a part of the images is held out"""


def is_here(path: Path) -> bool:
    """Tell whether a path is a table, or a folder with one table for each split and no class folders."""
    if path.is_dir():
        return bool(_of_folder(path)) and not any(
            entry.is_dir() and entry.name.lower() in SPLIT_WORDS for entry in os.scandir(path)
        )
    return path.suffix.lower() in ENDINGS


def read_classes(path: Path) -> ClassList:
    """Return the images of a table with a class each; rows that cannot be used are left out.

    Classes are sorted by name, whole numbers by size. Where a ``classes.txt`` beside the table names them, numbers in
    the table count its lines from 0.

    Raises:
        UserError: There is no such table, or it has no such columns.
    """
    folder, rows, skipped = _rows(path)
    if _are_files(folder, rows):
        raise UserError(
            f"{path}: its labels are files, as {rows[0][3]}, and not classes: --task segmentation reads them"
        )
    trained = [label for split, _, _, label in rows if split == "train"]
    classes, names = class_names(trained or [label for *_, label in rows], named_classes(folder), str(path))
    parts: dict[Split, list[Named]] = {}
    for split, _, file, label in rows:
        parts.setdefault(split, []).append((file, names.get(label, label)))
    if "train" not in parts:
        found = ", ".join(parts) or "no row that can be used"
        first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: no image to train on, found {found}{first}; {LAYOUT}")
    ordered = {split: sorted(part) for split, part in parts.items()}
    return ClassList(path, folder, "a table", classes, ordered, skipped=skipped)


def read_maps(path: Path) -> PairList:
    """Return the images of a table whose labels are the paths of label maps.

    Raises:
        UserError: There is no such table, or it has no such columns.
    """
    folder, rows, skipped = _rows(path)
    if not _are_files(folder, rows):
        first = f", as {rows[0][3]!r}," if rows else ""
        raise UserError(f"{path}: its labels{first} are no files of label maps: --task classification reads classes")
    parts: dict[Split, list[Pair]] = {}
    problems = [Problem(str(folder / one.path), None, "", one.reason, "mend or remove the row") for one in skipped]
    for split, place, file, label in rows:
        place = str(folder / place)
        if (folder / label).is_file():
            parts.setdefault(split, []).append((file, label))
        else:
            problems.append(Problem(place, None, "label", f"no file {label}", "name the image's label map"))
    parts.setdefault("train", [])
    return PairList(path, folder, parts, {"train": problems}, str(path), named_classes(folder))


def _are_files(folder: Path, rows: Sequence[Row]) -> bool:
    """Tell whether the first labels name files: a table has paths of label maps or classes."""
    return any((folder / label).is_file() for *_, label in rows[:100])


@dataclass
class _Table:
    """The rows of a table, each with its place, for the message on what is wrong with it."""

    path: Path
    skipped: list[SkippedFile] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the place and cells of each row, the names of the columns first."""
        try:
            yield from self._parquet() if self.path.suffix.lower() == ".parquet" else self._text()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.path}: cannot be read as a table: {error}; {LAYOUT}") from error

    def _text(self) -> Iterator[tuple[str, list[str]]]:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            file.seek(0)
            separator = max((",", "\t", ";"), key=start.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for cells in reader:
                if cells:
                    yield f"{self.path.name}:{reader.line_num}", [cell.strip() for cell in cells]

    def _parquet(self) -> Iterator[tuple[str, list[str]]]:
        with needing("data", f"{self.path}: Parquet is read with pyarrow"):
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        try:
            table = ParquetFile(self.path)
            yield str(self.path), list(table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches():
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield f"{self.path.name}: row {number}", ["" if one is None else str(one) for one in cells]
        except ArrowException as error:
            raise UserError(f"{self.path}: no Parquet file, or damaged: {first_line(error)}") from error


Row = tuple[Split, str, str, str]
"""Split, place in the table, path of the image and label."""


def _rows(path: Path) -> tuple[Path, list[Row], list[SkippedFile]]:
    """Return a table's folder and usable rows, of a folder those of its table for each split, and what is left out."""
    if not path.exists():
        raise UserError(f"{path}: no such file; name a table of images")
    found: list[Row] = []
    skipped: list[SkippedFile] = []
    tables: dict[Split, Path] = _of_folder(path) if path.is_dir() else {"train": path}
    for split, file in tables.items():
        rows = _Table(file).rows()
        _, header = next(rows, ("", []))
        places = _columns(file, header)
        if path.is_dir():
            places["split"] = None  # the file's name says it
        first: dict[str, str] = {}
        for place, cells in rows:
            row = _row(file.parent, cells, len(header), places, split)
            if isinstance(row, str):
                skipped.append(SkippedFile(place, row))
            elif row[1] in first:
                skipped.append(SkippedFile(place, f"{row[1]} is listed already: {first[row[1]]}"))
            else:
                first[row[1]] = place
                found.append((row[0], place, row[1], row[2]))
    return path if path.is_dir() else path.parent, found, skipped


def _columns(file: Path, header: Sequence[str]) -> dict[str, int | None]:
    """Return which column holds what."""
    lower = [name.strip().lower() for name in header]
    twice = sorted({name for name in lower if lower.count(name) > 1 and name})
    if twice:
        raise UserError(f"{file}: the column {twice[0]!r} stands twice; {LAYOUT}")
    places = {
        name: next((lower.index(other) for other in others if other in lower), None) for name, others in COLUMNS.items()
    }
    missing = [name for name in ("path", "label") if places[name] is None]
    if missing:
        raise UserError(
            f"{file}: no column {' and no column '.join(missing)}, found {name_some(list(header))}; {LAYOUT}"
        )
    if BOXES & set(lower):
        raise UserError(f"{file}: holds boxes, which are not read from a table; write COCO, YOLO or Pascal VOC files")
    return places


def _row(
    folder: Path, cells: list[str], width: int, places: dict[str, int | None], split: Split
) -> tuple[Split, str, str] | str:
    """Return a row's split, path and label, or why it cannot be used."""
    if len(cells) != width:
        return f"has {counted(len(cells), 'cell')} under {counted(width, 'column')}: put a text with a comma in quotes"
    values = {name: cells[place] for name, place in places.items() if place is not None}
    for name in ("path", "label"):
        if not values[name]:
            return f"no {name}: fill it in, or remove the row"
    file, label = values["path"], values["label"]
    if not is_file_name(file):
        return "the path has a character that no file name has"
    if file.startswith(("http://", "https://", "s3://", "gs://")):
        return "the path is an address: fetch the image, and name its file"
    if not os.path.isfile(os.path.join(folder, file)):
        return f"no file {folder / file}: put it there, or remove the row"
    if "split" in values:
        word = SPLIT_WORDS.get(values["split"].lower())
        if word is None:
            return f"the split is {values['split']!r}: write train, val or test"
        split = word
    return split, file, label


def _of_folder(folder: Path) -> dict[Split, Path]:
    """Return the tables that a folder has for its splits, or its one table."""
    tables = [entry for entry in sorted(folder.iterdir()) if entry.suffix.lower() in ENDINGS and entry.is_file()]
    by_split = {SPLIT_WORDS[file.stem.lower()]: file for file in tables if file.stem.lower() in SPLIT_WORDS}
    return by_split if "train" in by_split else {}
