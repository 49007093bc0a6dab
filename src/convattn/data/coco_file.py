"""COCO's annotation file: read, with everything that is wrong in it listed; what is right is kept."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convattn.data.forms import CocoContent
from convattn.data.images import is_file_name, is_text
from convattn.data.masks import LARGEST, OUTSIDE, Fault, is_number, segmentation_fault
from convattn.data.names import short
from convattn.data.problems import BadData, Problem

Wanted = Literal["boxes", "masks"]
"""What is read of each object: its box, or its box and its mask."""

Box = tuple[float, float, float, float]

_REMOVE = "mend or remove the annotation"
_AGAIN = "fetch or write the file again"
_SHAPE = 'a COCO file is an object with lists under "images", "annotations" and "categories"'


@dataclass(frozen=True)
class CocoObject:
    """One annotation: ``label`` counts the categories from 1, ``box`` is (x1, y1, x2, y2) inside the image."""

    id: int
    label: int
    box: Box
    area: float
    crowd: bool
    segmentation: Any = None


@dataclass(frozen=True)
class CocoImage:
    """One image and its objects; ``width`` and ``height`` are 0 where the file does not give them."""

    id: int
    file: str
    width: int
    height: int
    objects: tuple[CocoObject, ...] = ()


@dataclass(frozen=True)
class CocoFile:
    """The right part of an annotation file, whether any annotation of it has a mask, and its problems."""

    path: Path
    categories: tuple[tuple[int, str], ...]
    images: tuple[CocoImage, ...]
    has_masks: bool
    problems: list[Problem] = field(default_factory=list)


def read_coco_file(
    source: Path | CocoContent,
    wanted: Wanted = "masks",
    *,
    size_of: Callable[[str], tuple[int, int] | None] | None = None,
) -> CocoFile:
    """Read an annotation file; problems of its entries are listed, and the entries left out.

    Args:
        source: The JSON file, or what another format's reader brought into its form.
        wanted: Whether a segmentation has to be there, and right; where an object has a box alone that is no problem
            for "boxes".
        size_of: Gives (width, height) of an image file whose entry does not say it.

    Raises:
        BadData: The file as a whole cannot be used.
    """
    known_as = source if isinstance(source, CocoContent) else CocoContent(source, _load(source), source.parent)
    path, content, lines = known_as.path, known_as.lists, known_as.lines
    categories = _Entries(path, "categories", content["categories"]).read(_category_fault)
    if not categories.kept:
        raise BadData(
            [
                Problem(str(path), None, "categories", "no category", "list the classes under categories"),
                *categories.bad,
            ]
        )
    images = _Entries(path, "images", content["images"]).read(_image_fault)
    labels = {one["id"]: label for label, one in enumerate(sorted(categories.kept, key=lambda one: one["id"]), 1)}
    sizes = {one["id"]: _size(one, size_of) for one in images.kept}
    known = _Known(labels, sizes, {one["id"]: one["file_name"] for one in images.kept}, wanted)
    annotations = _Entries(path, "annotations", content["annotations"], lines).read(known.fault)
    objects: dict[int, list[CocoObject]] = defaultdict(list)
    for one in annotations.kept:
        objects[one["image_id"]].append(known.object(one))
    entries = tuple(
        CocoImage(one["id"], one["file_name"], *sizes[one["id"]], tuple(objects[one["id"]])) for one in images.kept
    )
    problems = [*known_as.problems, *categories.bad, *images.bad, *annotations.bad]
    problems += _empty(path, entries, problems)
    names = {one["id"]: one["name"] for one in categories.kept}
    has_masks = any(isinstance(one, dict) and one.get("segmentation") for one in content["annotations"])
    return CocoFile(path, tuple((id, names[id]) for id in labels), entries, has_masks, problems)


def _load(path: Path) -> dict[str, Any]:
    """Return the file's content, with the three lists that it must have."""

    def broken(what: str, remedy: str = _AGAIN, place: str = "") -> BadData:
        return BadData([Problem(str(path), None, place or "the file", what, remedy)])

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise broken(f"cannot be read: {error}") from error
    if not text.strip():
        raise broken("is empty")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        near_end = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
        what = "is truncated: it ends" if near_end else f"is no JSON: {error.msg}"
        raise broken(f"{what} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise broken("is nested too deeply for JSON annotations") from error
    except ValueError as error:  # a number beyond what Python reads
        raise broken(f"holds a number that cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise broken(f"holds a {type(content).__name__} at its top", _SHAPE)
    for name in ("images", "categories", "annotations"):
        value = content.get(name)
        if not isinstance(value, list):
            found = "is missing" if name not in content else f"is {type(value).__name__}, expected a list"
            raise broken(found, _SHAPE, name)
    return content


@dataclass
class _Entries:
    """The entries of one of the file's lists, parted into right ones and problems."""

    path: Path
    name: str
    entries: list[Any]
    lines: Mapping[int, str] = field(default_factory=dict)
    kept: list[dict[str, Any]] = field(default_factory=list)
    bad: list[Problem] = field(default_factory=list)

    def read(self, fault_of: Callable[[dict[str, Any]], tuple[str, Fault] | None]) -> "_Entries":
        """Part the entries; of those with one id the first is kept."""
        seen: set[int] = set()
        for place, entry in enumerate(self.entries):
            if not isinstance(entry, dict):
                self._add(None, "", (f"entry {place} is {short(entry)}, expected an object", _AGAIN))
                continue
            id = entry.get("id")
            if type(id) is not int or abs(id) >= LARGEST:
                what = f"entry {place} has id {short(id)}, expected a whole number of at most 63 bits"
                self._add(None, "id", (what, "number it"))
                continue
            fault = (
                ("id", ("the id stands twice", "give the entry an id of its own")) if id in seen else fault_of(entry)
            )
            if fault is None:
                self.kept.append(entry)
            else:
                self._add(id, *fault)
            seen.add(id)
        return self

    def _add(self, id: int | None, part: str, fault: Fault) -> None:
        if id is not None and id in self.lines:  # the id is ours, the line is what a person finds
            self.bad.append(Problem(self.lines[id], None, part, *fault))
            return
        self.bad.append(Problem(str(self.path), id, f"{self.name}.{part}" if part else self.name, *fault))


def _category_fault(entry: dict[str, Any]) -> tuple[str, Fault] | None:
    if not isinstance(entry.get("name"), str):
        return "name", (f"the name is {short(entry.get('name'))}, expected a text", "name the class")
    if not is_text(entry["name"]):
        return "name", (f"the name {short(entry['name'])} has a character that text does not have", "name it anew")
    return None


def _image_fault(entry: dict[str, Any]) -> tuple[str, Fault] | None:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        return "file_name", (f"found {short(name)}, expected the image's file", "name the file")
    if not is_file_name(name):
        return "file_name", (f"found {short(name)}, with a character that no file name has", "name the file")
    for side in ("width", "height"):
        value = entry.get(side)
        if value is not None and (type(value) is not int or not 1 <= value < LARGEST):
            return side, (f"{name}: found {short(value)}, expected a number of pixels", "mend it or leave it out")
    return None


def _size(entry: dict[str, Any], size_of: Callable[[str], tuple[int, int] | None] | None) -> tuple[int, int]:
    if entry.get("width") is not None and entry.get("height") is not None:
        return entry["width"], entry["height"]
    return (size_of(entry["file_name"]) if size_of is not None else None) or (0, 0)


@dataclass(frozen=True)
class _Known:
    """What an annotation is checked against."""

    labels: dict[int, int]
    sizes: dict[int, tuple[int, int]]
    files: dict[int, str]
    wanted: Wanted

    def fault(self, entry: dict[str, Any]) -> tuple[str, Fault] | None:
        """Return the field of an annotation that is wrong, and its fault."""
        image, category = entry.get("image_id"), entry.get("category_id")
        if type(image) is not int or image not in self.sizes:
            return "image_id", (f"no right image has the id {short(image)}", _REMOVE)
        file = self.files[image]
        if type(category) is not int or category not in self.labels:
            return "category_id", (f"{file}: no category has the id {short(category)}", _REMOVE)
        if entry.get("iscrowd") not in (None, 0, 1):
            return "iscrowd", (f"{file}: found {short(entry['iscrowd'])}, expected 0 or 1", _REMOVE)
        area = entry.get("area")
        if area is not None and not (is_number(area) and math.isfinite(area) and area >= 0):
            return "area", (f"{file}: found {short(area)}, expected a number of pixels", "mend it or leave it out")
        width, height = self.sizes[image]
        named, fault = "bbox", box_fault(entry.get("bbox"), width, height)
        if fault is None and self.wanted == "masks" and width:
            named, fault = "segmentation", _mask_fault(entry.get("segmentation"), width, height)
        return None if fault is None else (named, (f"{file}: {fault[0]}", fault[1]))

    def object(self, entry: dict[str, Any]) -> CocoObject:
        """Return a right annotation, its box cut at the image's border."""
        x, y, w, h = map(float, entry["bbox"])
        width, height = (side or math.inf for side in self.sizes[entry["image_id"]])
        box = (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))
        area = entry.get("area")
        return CocoObject(
            id=entry["id"],
            label=self.labels[entry["category_id"]],
            box=box,
            area=float(w * h if area is None else area),
            crowd=bool(entry.get("iscrowd")),
            segmentation=entry.get("segmentation") if self.wanted == "masks" else None,
        )


def box_fault(value: Any, width: int, height: int) -> Fault | None:
    """Return what is wrong with a COCO box [x, y, width, height] in an image of that size (0: not known).

    Up to a pixel beyond the border passes, since rounding makes that; such a box is cut.

    Example:
        >>> box_fault([6, 0, 4, 4], 8, 8)[0]
        'the box [6, 0, 4, 4] reaches 2 pixels beyond the image of 8×8'
    """
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return f"the box is {short(value)}, expected [x, y, width, height]", _REMOVE
    if not all(map(math.isfinite, value)):
        return f"the box {value} has a number that is not finite", _REMOVE
    x, y, w, h = value
    if w <= 0 or h <= 0:
        return f"the box {value} has no area", _REMOVE
    if not width or not height:
        return None
    beyond = max(-x, -y, x + w - width, y + h - height)
    inside = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    if beyond > OUTSIDE or min(inside) <= 0:
        return f"the box {value} reaches {beyond:g} pixels beyond the image of {width}×{height}", _REMOVE
    return None


def _mask_fault(value: Any, width: int, height: int) -> Fault | None:
    if value is None:
        return "no segmentation, and masks are wanted", "draw the mask, or train on boxes: --task detection"
    return segmentation_fault(value, height, width)


def _empty(path: Path, images: Iterable[CocoImage], bad: list[Problem]) -> list[Problem]:
    """Note the images without objects."""
    what, remedy = "no objects", "nothing to do: it trains as an image without objects"
    if bad:
        what = "no right object is left"
    return [
        Problem(str(path), image.id, "images", f"{image.file}: {what}", remedy, level="note")
        for image in images
        if not image.objects
    ]
