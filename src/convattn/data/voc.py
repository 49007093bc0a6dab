"""Pascal VOC's data sets: an XML file of boxes an image, and PNGs of classes for segmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from convattn.data.files import in_threads
from convattn.data.folder import SPLIT_WORDS, list_images
from convattn.data.forms import CocoContent, CocoLists, PairList
from convattn.data.images import EXTENSIONS, is_file_name
from convattn.data.names import name_some
from convattn.data.pair_layout import read_classes as named_classes
from convattn.data.problems import Problem
from convattn.data.types import Pair, Split
from convattn.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Those of the challenge, in the order of its PNGs, where 0 is the background."""

LAYOUT = """expected one of
  ROOT/Annotations/*.xml with ROOT/JPEGImages/*.jpg   (ImageSets/Main/train.txt and val.txt name the splits)
  ROOT/train/*.xml beside the images, and both again for val/"""

LARGEST_FILE = 10_000_000


def is_here(path: Path) -> bool:
    """Tell whether a folder has VOC's annotations."""
    return path.is_dir() and (_home(path) is not None or bool(_split_folders(path)))


def read_boxes(path: Path) -> dict[Split, CocoContent]:
    """Return the boxes of each split.

    VOC counts pixels from 1 and its boxes include the last one; they come as COCO's, from 0. Objects that are marked
    as difficult become crowds, which are neither learned nor counted. The classes are those of ``classes.txt``, else
    all that are named, sorted.

    Raises:
        UserError: A list of a split cannot be read, or there is no annotation.
    """
    home = _home(path)
    stems = _stems(home) if home is not None else _split_folders(path)
    root = home or path
    named = named_classes(path)
    files = list(dict.fromkeys(file for part in stems.values() for file, _ in part))
    if not files:
        raise UserError(f"{root}: found no annotations; {LAYOUT}")
    parsed = dict(zip(files, in_threads(_read, files), strict=True))
    found = sorted({one.name for reading in parsed.values() for one in reading.objects})
    classes = named or (list(CLASSES) if found and set(found) <= set(CLASSES) else found)
    return {
        split: _content(root, [(parsed[file], images) for file, images in part], classes)
        for split, part in stems.items()
    }


def read_maps(path: Path) -> PairList:
    """Return the images with their PNGs of classes, ``SegmentationClass/``, as ``ImageSets/Segmentation`` lists them.

    Raises:
        UserError: There are none.
    """
    home = _home(path)
    if home is None or not (home / "SegmentationClass").is_dir():
        raise UserError(
            f"{path}: no SegmentationClass/ with a PNG of classes for each image; for boxes: --task detection"
        )
    images = _by_stem(home / "JPEGImages")
    labels = {file.stem: file for file in sorted((home / "SegmentationClass").glob("*.png"))}
    lists = _lists(home / "ImageSets" / "Segmentation") or {"train": [(stem, "") for stem in sorted(labels)]}
    parts: dict[Split, Sequence[Pair]] = {}
    problems: dict[Split, Sequence[Problem]] = {}
    for split, stems in lists.items():
        parts[split] = [
            (f"JPEGImages/{images[stem]}", f"SegmentationClass/{stem}.png")
            for stem, _ in stems
            if stem in images and stem in labels
        ]
        problems[split] = [
            Problem(place or str(home), None, "", f"no {'image' if stem not in images else 'PNG'} {stem}", "add it")
            for stem, place in stems
            if stem not in images or stem not in labels
        ]
    names = named_classes(path) or ["background", *CLASSES]
    return PairList(home, home, parts, problems, str(home / "SegmentationClass"), names)


def _home(path: Path) -> Path | None:
    """Return the folder of Annotations/ or SegmentationClass/: this one, or one below VOCdevkit/."""
    below = sorted(path.glob("VOC*/")) + sorted(path.glob("VOCdevkit/VOC*/"))
    kinds = (("Annotations", "*.xml"), ("SegmentationClass", "*.png"))
    found = [
        one for one in [path, *below] if (one / "JPEGImages").is_dir() and any(any((one / k).glob(g)) for k, g in kinds)
    ]
    if len(found) > 1:
        raise UserError(f"{path}: holds {name_some([one.name for one in found])}; give one of these folders")
    return found[0] if found else None


Annotation = tuple[Path, Path]
"""An XML file, and the folder of its image."""


def _split_folders(path: Path) -> dict[Split, list[Annotation]]:
    """Return the annotations that lie beside their images in a folder for each split."""
    found: dict[Split, list[Annotation]] = {}
    for entry in sorted(path.iterdir()):
        split = SPLIT_WORDS.get(entry.name.lower()) if entry.is_dir() else None
        files = sorted(entry.glob("*.xml")) if split is not None else []
        if files and split is not None:
            found[split] = [(file, entry) for file in files]
    return found if "train" in found else {}


def _stems(home: Path) -> dict[Split, list[Annotation]]:
    """Return the annotations of each split, all as "train" where no list names the splits."""
    folder, images = home / "Annotations", home / "JPEGImages"
    lists = _lists(home / "ImageSets" / "Main")
    if not lists:
        return {"train": [(file, images) for file in sorted(folder.glob("*.xml"))]}
    return {split: [(folder / f"{stem}.xml", images) for stem, _ in stems] for split, stems in lists.items()}


def _lists(folder: Path) -> dict[Split, list[tuple[str, str]]]:
    """Return the names that ``train.txt``, ``val.txt`` and ``test.txt`` list, each with its line.

    ``trainval.txt`` takes the place of ``train.txt`` where there is no such file.
    """
    found: dict[Split, list[tuple[str, str]]] = {}
    names: dict[Split, tuple[str, ...]] = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
    for split, stems in names.items():
        file = next((folder / f"{stem}.txt" for stem in stems if (folder / f"{stem}.txt").is_file()), None)
        if file is None:
            continue
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read: {error}; write an image's name a line") from error
        rows = [(line.split()[0], f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
        found[split] = list({stem: (stem, place) for stem, place in rows}.values())
    return found if "train" in found else {}


def _by_stem(folder: Path) -> Mapping[str, str]:
    return {Path(file).stem: file for file in list_images(folder)} if folder.is_dir() else {}


@dataclass(frozen=True)
class _Object:
    name: str
    box: list[float]
    difficult: bool
    line: int


@dataclass
class _Reading:
    """What an XML file says: its image, the objects by line, and what is wrong with it."""

    file: Path
    image: str = ""
    size: tuple[int, int] | None = None
    objects: list[_Object] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, line: int, what: str, remedy: str = "mend or remove the object", place: str = "") -> None:
        where = f"{self.file}:{line}" if line else str(self.file)
        self.problems.append(Problem(where, None, place, what, remedy))


def _content(root: Path, parts: Sequence[tuple[_Reading, Path]], classes: Sequence[str]) -> CocoContent:
    """Return COCO's lists of a split."""
    images: dict[Path, Mapping[str, str]] = {}
    lists = CocoLists(classes)
    ids = {name: number for number, name in enumerate(classes, 1)}
    for reading, folder in parts:
        lists.problems += reading.problems
        if folder not in images:
            images[folder] = _by_stem(folder)
        stem = reading.file.stem
        name = images[folder].get(stem) or reading.image or f"{stem}.jpg"
        lists.add_image((folder / name).relative_to(root).as_posix(), reading.size)
        for one in reading.objects:
            place = f"{reading.file}:{one.line}"
            if one.name in ids:
                entry = {"category_id": ids[one.name], "iscrowd": int(one.difficult), "bbox": one.box}
                lists.add_object(place, entry)
            else:
                what = f"{one.name!r} is none of the {len(classes)} classes of classes.txt: {name_some(classes)}"
                lists.problems.append(Problem(place, None, "name", what, "mend the name, or add the class"))
    return lists.content(root, root)


def _read(file: Path) -> _Reading:
    """Read an annotation; what is wrong with it is listed."""
    reading = _Reading(file)
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ValueError(f"has {file.stat().st_size:,} bytes")
        root, lines = _parse(file.read_bytes())
    except FileNotFoundError:
        reading.wrong(0, "no such file, though a list of ImageSets names it", "add it, or mend the list")
    except expat.ExpatError as error:
        reading.wrong(error.lineno, f"is no XML: {expat.ErrorString(error.code)}", "write the file again")
    except (OSError, ValueError) as error:
        reading.wrong(0, f"cannot be read: {error}", "write the file again")
    else:
        _take(reading, root, lines)
    return reading


def _parse(content: bytes) -> tuple[Element, dict[Element, int]]:
    """Return the root of an XML text, and the line of each element; one with definitions of its own is refused."""
    parser, builder, lines = expat.ParserCreate(), TreeBuilder(), dict[Element, int]()

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: Any) -> None:
        raise ValueError("has a DOCTYPE, which annotations do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    parser.Parse(content, True)
    return builder.close(), lines


def _take(reading: _Reading, root: Element, lines: Mapping[Element, int]) -> None:
    if root.tag != "annotation":
        reading.wrong(lines[root], f"the file is of <{root.tag}>, expected <annotation>", "remove or mend it")
        return
    name = (root.findtext("filename") or "").strip().replace("\\", "/").split("/")[-1]
    if name and Path(name).suffix.lower() in EXTENSIONS and is_file_name(name):
        reading.image = name
    size = root.find("size")
    if size is not None:
        sides = [_number(size.findtext(side)) for side in ("width", "height")]
        if any(side is None or side < 0 or side != int(side) for side in sides):
            reading.wrong(lines[size], "the size is not of whole numbers", "write the image's width and height", "size")
        elif all(sides):  # 0 is what tools write that did not look
            reading.size = (int(sides[0] or 0), int(sides[1] or 0))
    for element in root.iterfind("object"):
        _take_object(reading, element, lines)


def _take_object(reading: _Reading, element: Element, lines: Mapping[Element, int]) -> None:
    line, name, box = lines[element], (element.findtext("name") or "").strip(), element.find("bndbox")
    if not name:
        reading.wrong(line, "the object has no <name>", place="name")
        return
    if box is None:
        kind = "a rotated box" if element.find("robndbox") is not None else "no <bndbox>"
        reading.wrong(line, f"{name}: the object has {kind}", place="bndbox")
        return
    found = {side: _number(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")}
    wrong = next((side for side, number in found.items() if number is None), None)
    if wrong is not None:
        text = (box.findtext(wrong) or "").strip()
        reading.wrong(lines[box], f"{name}: {wrong} is {text!r:.40}, expected a number", place="bndbox")
        return
    left, top, right, bottom = (number or 0.0 for number in found.values())
    if right < left or bottom < top:
        what = f"{name}: the box ends before it begins: {left:g} to {right:g}, {top:g} to {bottom:g}"
        reading.wrong(lines[box], what, place="bndbox")
        return
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        reading.wrong(line, f"{name}: difficult is {difficult!r:.40}, expected 0 or 1", place="difficult")
        return
    box_of = [left - 1, top - 1, right - left + 1, bottom - top + 1]
    reading.objects.append(_Object(name, box_of, difficult == "1", lines[box]))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
