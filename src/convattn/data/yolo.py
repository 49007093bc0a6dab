"""YOLO's data sets: a ``data.yaml`` that names images and classes, and a text file of boxes or polygons an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from convattn.data.files import in_threads, readable_size
from convattn.data.folder import VAL_NAMES, list_images
from convattn.data.forms import CocoContent, CocoLists
from convattn.data.images import is_file_name, is_image_name
from convattn.data.names import counted
from convattn.data.problems import BadData, Problem
from convattn.data.types import Split
from convattn.errors import UserError

SPLIT_KEYS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": VAL_NAMES, "test": ("test",)}

LAYOUT = """expected a data.yaml such as
  path: .                   the folder of the data, from this file on
  train: images/train       images; their labels are in labels/train/*.txt
  val: images/val
  names: [cat, dog]         or {0: cat, 1: dog}"""

ROW = (
    "expected a row of class x y width height, or of class and three points or more, in parts of the image from 0 to 1"
)
OUTSIDE = 0.01
"""How far a coordinate may lie beyond 0 to 1: more is no rounding."""
LARGEST_FILE = 1_000_000


def is_here(path: Path) -> bool:
    """Tell whether a path is, or holds, a ``data.yaml``."""
    return path.suffix.lower() in (".yaml", ".yml") if not path.is_dir() else _find(path) is not None


def read_boxes(path: Path) -> dict[Split, CocoContent]:
    """Return the boxes and polygons of each split.

    Boxes come as COCO's, in pixels; the class that a row calls 0 has the id 1.

    Raises:
        UserError: The ``data.yaml`` cannot be used.
        BadData: It names no classes or no images.
    """
    file = _find(path) if path.is_dir() else path
    settings = _read_settings(file or path / "data.yaml")
    names = _names(settings)
    found: dict[Split, CocoContent] = {}
    for split, keys in SPLIT_KEYS.items():
        key = next((key for key in keys if settings.values.get(key)), None)
        if key is not None and (split != "test" or _is_there(settings, key)):
            found[split] = _content(settings, _images(settings, key), names)
    if "train" not in found:
        raise settings.fault("train", "names no images", f"add train: with a folder; {LAYOUT}")
    return found


@dataclass(frozen=True)
class _Settings:
    """A ``data.yaml``: its values, the lines of its keys, and the folder that its paths are below."""

    file: Path
    values: dict[str, Any]
    lines: dict[str, int]
    root: Path

    def fault(self, key: str, what: str, remedy: str) -> BadData:
        place = f"{self.file}:{self.lines[key]}" if key in self.lines else str(self.file)
        return BadData([Problem(place, None, key, what, remedy, level="fatal")])


def _find(folder: Path) -> Path | None:
    """Return the YAML file of a folder that has a data set's keys."""
    files = sorted(one for ending in ("*.yaml", "*.yml") for one in folder.glob(ending) if one.is_file())
    named = [file for file in files if file.stem in ("data", "dataset")]
    return next((file for file in [*named, *files] if file in named or _has_keys(file)), None)


def _has_keys(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size < LARGEST_FILE else ""
    except (OSError, UnicodeDecodeError):
        return False
    lines = text.splitlines()
    return all(any(line.startswith(f"{key}:") for line in lines) for key in ("train", "names"))


def _read_settings(file: Path) -> _Settings:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise UserError(f"{file}: has {file.stat().st_size:,} bytes, and is no data.yaml; {LAYOUT}")
        text = file.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {' '.join(str(error).split())}; {LAYOUT}") from error
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be read: {error}; {LAYOUT}") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: holds {type(values).__name__} at its top, not keys; {LAYOUT}")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    found = _Settings(file, values, lines, file.parent)
    if "kpt_shape" in values:
        raise found.fault("kpt_shape", "the labels are of key points, which are not read", "give boxes or polygons")
    root = values.get("path") or "."
    if not isinstance(root, str) or not is_file_name(root):
        raise found.fault("path", f"found {root!r}, expected a folder", "name the folder of the data, or leave it out")
    below = file.parent / Path(root).expanduser()
    return _Settings(file, values, lines, below if below.is_dir() else file.parent)


def _names(settings: _Settings) -> list[str]:
    """Return the classes by number."""
    given = settings.values.get("names")
    if isinstance(given, dict):
        if sorted(map(str, given)) != sorted(map(str, range(len(given)))):
            what = f"the numbers are {', '.join(map(str, list(given)[:5]))}, expected all from 0 to {len(given) - 1}"
            raise settings.fault("names", what, "number the classes from 0 on without gaps")
        given = [given[number] if number in given else given[str(number)] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise settings.fault("names", f"found {given!r:.40}, expected the classes", "write names: [cat, dog]")
    count = settings.values.get("nc", len(given))
    if count != len(given):
        raise settings.fault("nc", f"is {count!r}, but names has {counted(len(given), 'class')}", "leave nc out")
    wrong = next((name for name in given if not isinstance(name, str | int | float)), None)
    if wrong is not None:
        raise settings.fault("names", f"a class is {wrong!r:.40}, expected a text", "write its name")
    return [str(name) for name in given]


def _is_there(settings: _Settings, key: str) -> bool:
    value = settings.values[key]
    return all(_place(settings, one).exists() for one in ([value] if isinstance(value, str) else value))


def _place(settings: _Settings, name: Any) -> Path:
    """Return the path that a setting names; ``../train`` beside the file is what exporters write for ``train``."""
    if not isinstance(name, str) or not is_file_name(name):
        raise settings.fault("train", f"found {name!r:.40}, expected a folder of images", LAYOUT)
    place = settings.root / name
    return place if place.exists() or not name.startswith("../") else settings.root / name.removeprefix("../")


def _images(settings: _Settings, key: str) -> list[Path]:
    """Return the images that a setting names: of folders, of lists of images, or single ones."""
    value = settings.values[key]
    found: list[Path] = []
    for name in [value] if isinstance(value, str) else value if isinstance(value, list) else [value]:
        place = _place(settings, name)
        if place.is_dir():
            images = list_images(place)
            if not images:
                raise settings.fault(key, f"no images in {place}", "name the folder of the images")
            found += [place / image for image in images]
        elif place.suffix == ".txt" and place.is_file():
            found += _listed(place)
        elif place.is_file() and is_image_name(place.name):
            found.append(place)
        else:
            raise settings.fault(
                key, f"no folder, list or image {place}", f"mend the path, or path: above it; {LAYOUT}"
            )
    return found


def _listed(file: Path) -> Iterator[Path]:
    """Yield the images of a text file, one a line, below its folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}; write an image's path a line") from error
    for line in map(str.strip, lines):
        if line:
            yield file.parent / line if line.startswith("./") or not (Path(line).exists()) else Path(line)


def _content(settings: _Settings, images: Sequence[Path], names: Sequence[str]) -> CocoContent:
    """Return COCO's lists of a split."""
    reads = in_threads(lambda image: _Labels(image, len(names)).read(), images)
    lists = CocoLists(names)
    for image, labels in zip(images, reads, strict=True):
        lists.add_image(_below(image, settings.root), labels.size)
        lists.problems += labels.problems
        for line, row in labels.rows:
            lists.add_object(f"{labels.file}:{line}", row)
    if images and not any(labels.file.is_file() for labels in reads):
        what = f"none of the {counted(len(images), 'image')} has labels, as {reads[0].file}"
        fault = Problem(str(settings.file), None, "labels", what, "put labels/ beside images/", level="fatal")
        lists.problems.append(fault)
    return lists.content(settings.file, settings.root)


def _below(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()


def labels_of(image: Path) -> Path:
    """Return the label file of an image: below ``labels`` in place of the last ``images``, else beside it.

    Example:
        >>> labels_of(Path("data/images/train/1.jpg")).as_posix(), labels_of(Path("train/1.jpg")).as_posix()
        ('data/labels/train/1.txt', 'train/1.txt')
    """
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


@dataclass
class _Labels:
    """The rows of an image's label file, as COCO's annotations by line; no file is an image without objects."""

    image: Path
    classes: int
    size: tuple[int, int] | None = None
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return labels_of(self.image)

    def read(self) -> _Labels:
        self.size = readable_size(self.image)
        try:
            lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            lines = []
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(Problem(str(self.file), None, "", f"cannot be read: {error}", "write it again"))
            lines = []
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            if line.strip() and self.size is not None:
                self._take(number, line.strip(), seen)
        return self

    def _take(self, number: int, line: str, seen: set[str]) -> None:
        found = self._row(line.split(), *(self.size or (1, 1)))
        if line in seen:
            found = "the row stands twice"
        seen.add(line)
        if isinstance(found, str):
            self.problems.append(Problem(f"{self.file}:{number}", None, "", found, "mend or remove the row"))
        else:
            self.rows.append((number, found))

    def _row(self, cells: list[str], width: int, height: int) -> dict[str, Any] | str:
        """Return COCO's annotation of a row, or what is wrong with it."""
        try:
            label, *numbers = map(float, cells)
        except ValueError:
            return f"found {' '.join(cells)!r:.60}; {ROW}"
        if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
            return f"found {counted(len(cells), 'number')}; {ROW}"
        if label not in range(self.classes):
            return f"class {cells[0]} is none: the {self.classes} classes are 0 to {self.classes - 1}"
        if not all(map(math.isfinite, numbers)):
            return "a number is not finite"
        if len(numbers) == 4:
            return self._box(int(label), numbers, width, height)
        if not all(-OUTSIDE <= one <= 1 + OUTSIDE for one in numbers):
            return f"a point is outside the image: {_first_outside(numbers)} in place of 0 to 1; {ROW}"
        points = _pixels(numbers, width, height)
        return {"category_id": int(label) + 1, **_around(points), "segmentation": [points]}

    def _box(self, label: int, numbers: list[float], width: int, height: int) -> dict[str, Any] | str:
        x, y, w, h = numbers
        if w <= 0 or h <= 0:
            return f"the box has a width of {w:g} and a height of {h:g}"
        sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        if not all(-OUTSIDE <= one <= 1 + OUTSIDE for one in sides):
            return f"the box reaches beyond the image: {_first_outside(sides)} in place of 0 to 1; {ROW}"
        left, top, right, bottom = _pixels(sides, width, height)
        return {"category_id": label + 1, "bbox": [left, top, round(right - left, 6), round(bottom - top, 6)]}


def _pixels(numbers: Sequence[float], width: int, height: int) -> list[float]:
    """Return coordinates in pixels, to a millionth of one: what was a whole number is one again."""
    sides = width, height
    return [round(min(max(one, 0.0), 1.0) * sides[place % 2], 6) for place, one in enumerate(numbers)]


def _around(points: Sequence[float]) -> dict[str, Any]:
    """Return the box around a polygon, and its area."""
    xs, ys = points[::2], points[1::2]
    area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))) / 2
    return {"bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], "area": abs(area)}


def _first_outside(numbers: Sequence[float]) -> str:
    return f"{next(one for one in numbers if not -OUTSIDE <= one <= 1 + OUTSIDE):g}"
