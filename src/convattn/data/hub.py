"""Data sets of Hugging Face ``datasets``: a folder of ``save_to_disk``, or one of a hub by name, ``hfds/NAME``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from convattn.data.files import in_threads, readable_size
from convattn.data.folder import SPLIT_WORDS
from convattn.data.forms import ClassList, CocoContent, CocoLists, PairList
from convattn.data.names import name_some
from convattn.data.numbering import class_names
from convattn.data.packed import PackedFile
from convattn.data.problems import Problem
from convattn.data.types import Named, Pair, SkippedFile, Split
from convattn.errors import UserError, first_line, needing

PREFIX = "hfds"
"""What timm's readers call such a data set by."""

IMAGES = ("image", "img", "jpg", "pixel_values")
CLASSES = ("label", "labels", "class", "category")
MAPS = ("annotation", "label", "mask", "labels", "segmentation_mask")
OBJECTS = ("objects", "annotations")
CATEGORIES = ("category", "categories", "label", "labels", "category_id")
"""The names of columns that are looked for, the likeliest first."""


def is_name(path: Path) -> bool:
    """Tell whether a path is the name of a data set on a hub."""
    return path.parts[:1] == (PREFIX,) and len(path.parts) > 1 and not path.exists()


def is_here(path: Path) -> bool:
    """Tell whether a path is a folder of ``save_to_disk``, or a name."""
    files = ("dataset_dict.json",), ("dataset_info.json", "state.json")
    return is_name(path) or any(all((path / name).is_file() for name in names) for names in files)


@dataclass(frozen=True)
class RowPack:
    """The images of a data set's rows; a name is SPLIT/ROW/COLUMN."""

    path: Path
    parts: Mapping[Split, Any] = field(hash=False, compare=False)

    def place(self, name: str) -> tuple[int, int] | None:
        """Return a number for the row and the mean size of the rows: none of them is read for it."""
        split, row, _ = name.split("/", 2)
        rows = self.parts.get(split)  # type: ignore[call-overload]
        if rows is None or int(row) >= len(rows):
            return None
        number = (list(self.parts).index(split) << 64) + int(row)  # type: ignore[arg-type]
        return number, max(1, rows.data.nbytes // len(rows))

    def read(self, name: str) -> bytes:
        """Return the bytes of an image as they were stored."""
        split, row, column = name.split("/", 2)
        stored = self.parts[split][int(row)][column]  # type: ignore[index]
        if stored is None:
            raise FileNotFoundError(name)
        return Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]

    def fetch(self, names: Sequence[str]) -> None:
        """Do nothing: rows are on the disk."""

    def __truediv__(self, name: str) -> PackedFile:
        return PackedFile(self, name)


def read_classes(path: Path) -> ClassList:
    """Return the images with a class each; rows without a class are left out.

    Raises:
        UserError: The data set cannot be opened, or has no such columns.
    """
    parts = _open(path)
    features = parts["train"].features
    column = _column(path, features, CLASSES, "a class for each image", _is_class)
    image, skipped = _image_column(path, features), []
    found: dict[Split, list[Named]] = {}
    for split, rows in parts.items():
        for number, label in enumerate(rows[column]):
            place = _member(split, number, image)
            if label is None or label == "" or label == -1:
                skipped.append(SkippedFile(place, f"no {column}: fill it in, or leave the row out"))
            else:
                found.setdefault(split, []).append((place, str(label)))
    names = getattr(features[column], "names", None)
    classes, known = class_names((label for _, label in found.get("train", ())), names, str(path))
    named = {split: sorted((file, known.get(label, label)) for file, label in part) for split, part in found.items()}
    return ClassList(path, RowPack(path, parts), "a Hugging Face data set", classes, named, skipped=skipped)


def read_boxes(path: Path) -> dict[Split, CocoContent]:
    """Return the boxes of each split, from the column ``objects``: boxes as COCO's, categories, polygons if any.

    Raises:
        UserError: The data set cannot be opened, or has no such columns.
    """
    parts = _open(path)
    features = parts["train"].features
    column = _column(path, features, OBJECTS, "objects with bbox and category", _has_boxes)
    image, inner = _image_column(path, features), _inner(features[column])
    category = next(name for name in CATEGORIES if name in inner)
    names = getattr(getattr(inner[category], "feature", inner[category]), "names", None)
    given = (one for row in parts["train"][column] for one in _columns(row).get(category) or ())
    labels = {str(one) for one in given if one is not None}
    classes, _ = class_names(labels, names, str(path))
    ids = {name: number for number, name in enumerate(classes, 1)}
    if names is not None:
        ids |= {str(number): number + 1 for number in range(len(names))}
    pack = RowPack(path, parts)
    return {split: _Rows(pack, split, image, column, category, ids, classes).content() for split in parts}


def read_maps(path: Path) -> PairList:
    """Return the images with their label maps.

    Raises:
        UserError: The data set cannot be opened, or has no such columns.
    """
    parts = _open(path)
    features = parts["train"].features
    image = _image_column(path, features)
    column = _column(path, {k: v for k, v in features.items() if k != image}, MAPS, "a label map for each", _is_image)
    pairs: dict[Split, Sequence[Pair]] = {
        split: [(_member(split, row, image), _member(split, row, column)) for row in range(len(rows))]
        for split, rows in parts.items()
    }
    return PairList(path, RowPack(path, parts), pairs, {}, f"{path}: {column}")


@dataclass(frozen=True)
class _Rows:
    """The rows of a split with objects, and how they are read."""

    pack: RowPack
    split: Split
    image: str
    column: str
    category: str
    ids: Mapping[str, int]
    classes: Sequence[str]

    def content(self) -> CocoContent:
        """Return COCO's lists."""
        rows = self.pack.parts[self.split]
        files = [_member(self.split, row, self.image) for row in range(len(rows))]
        sizes = in_threads(lambda file: readable_size(self.pack / file), files)
        lists = CocoLists(self.classes)
        for number, (file, size, objects) in enumerate(zip(files, sizes, rows[self.column], strict=True)):
            lists.add_image(file, size)
            place = f"{self.pack.path}: {self.split} row {number}"
            for one in self._objects(place, objects, lists.problems) if size else ():
                lists.add_object(place, one)
        return lists.content(self.pack.path, self.pack)

    def _objects(self, place: str, objects: Any, problems: list[Problem]) -> Iterator[dict[str, Any]]:
        columns = _columns(objects)
        boxes, labels = columns.get("bbox") or [], columns.get(self.category) or []
        if len(boxes) != len(labels):
            what = f"{len(boxes)} boxes and {len(labels)} categories"
            problems.append(Problem(place, None, self.column, what, "give each object one of both"))
            return
        for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            if str(label) not in self.ids:
                what = f"object {index}: category {label!r} is none of the {len(self.classes)} classes"
                problems.append(Problem(place, None, self.category, what, "mend or remove the object"))
                continue
            more = {"iscrowd": int(columns["iscrowd"][index])} if columns.get("iscrowd") else {}
            if columns.get("segmentation"):
                more["segmentation"] = columns["segmentation"][index]
            yield {"category_id": self.ids[str(label)], "bbox": box, **more}


@cache
def _open(path: Path) -> dict[Split, Any]:
    """Return the splits of a data set, images as they were stored."""
    with needing("data", f"{path}: is read with Hugging Face datasets"):
        import datasets
    try:
        by_name = is_name(path)
        found = datasets.load_dataset("/".join(path.parts[1:])) if by_name else datasets.load_from_disk(str(path))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        remedy = "mend its name" if is_name(path) else "write it again with save_to_disk"
        raise UserError(f"{path}: datasets cannot open it: {first_line(error)}; {remedy}") from error
    given = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    parts: dict[Split, Any] = {}
    for name, rows in given.items():
        split = SPLIT_WORDS.get(name.lower())
        if split is None:
            continue
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        parts[split] = rows
    if not parts.get("train"):
        raise UserError(f"{path}: has no rows of a split called train; its splits are {name_some(list(given))}")
    return parts


def _member(split: Split, row: int, column: str) -> str:
    return f"{split}/{row:08}/{column}"


def _image_column(path: Path, features: Mapping[str, Any]) -> str:
    return _column(path, features, IMAGES, "an image", _is_image)


def _column(path: Path, features: Mapping[str, Any], names: Sequence[str], wanted: str, fits: Any) -> str:
    """Return the column that has what is wanted: the first of the names, else the only one that fits."""
    fitting = [name for name, feature in features.items() if fits(feature)]
    found = next((name for name in names if name in fitting), None) or (fitting[0] if len(fitting) == 1 else None)
    if found is None:
        those = f"{name_some(fitting)} could be it" if fitting else f"its columns are {name_some(list(features))}"
        raise UserError(f"{path}: no column with {wanted}: {those}; call the column {names[0]}")
    return found


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_class(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or getattr(feature, "dtype", "") in ("int64", "int32", "string")


def _has_boxes(feature: Any) -> bool:
    inner = _inner(feature)
    return "bbox" in inner and any(name in inner for name in CATEGORIES)


def _inner(feature: Any) -> Mapping[str, Any]:
    """Return the columns of a column of objects, a list of records or a record of lists."""
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, Mapping) else {}


def _columns(objects: Any) -> dict[str, Any]:
    """Return a row's objects as a record of lists."""
    if isinstance(objects, Mapping):
        return dict(objects)
    records = list(objects or ())
    return {key: [one[key] for one in records] for key in (records[0] if records else ())}
