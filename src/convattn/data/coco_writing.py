"""Write boxes and masks of any format as COCO: an annotation file for each split, and its images."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from convattn.data.coco import DetectionImages, check_coco
from convattn.data.coco_file import CocoFile, Wanted
from convattn.data.folder import Progress
from convattn.data.formats import coco_parts
from convattn.data.images import open_file, read_header
from convattn.data.names import escaped
from convattn.data.packed import ImageFile
from convattn.errors import UserError, naming_file


def write_coco(
    root: str | os.PathLike[str], out: Path, *, wanted: Wanted | None = None, progress: Progress | None = None
) -> list[Path]:
    """Write a data set's boxes, and masks where it has them, as COCO, and return the annotation files.

    ``out`` gets ``annotations/instances_<split>.json`` and the images in ``<split>/``: hard links where the disk
    allows them, else copies. What is wrong in the data is left out.

    Args:
        root: The data.
        out: A new or an empty folder.
        wanted: "boxes" leaves masks out; None takes masks where an object has one.
        progress: Called with (images checked, images in all), split by split.

    Raises:
        UserError: The data has no boxes, or ``out`` holds files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds other files; give --to a new or an empty folder")
    written = []
    for split, source in coco_parts(root).items():
        file, images, _ = check_coco(source, wanted=wanted or "masks", progress=progress)
        if wanted is None and not file.has_masks:
            file, images, _ = check_coco(source, wanted="boxes", progress=progress)
        if not len(images):
            continue
        written.append(out / "annotations" / f"instances_{split}.json")
        with naming_file(written[-1]):
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            (out / split).mkdir(exist_ok=True)
            names = _names(images)
            for entry, name in zip(images.entries, names, strict=True):
                _place(images.root / entry.file, out / split / name)
            written[-1].write_text(escaped(json.dumps(_content(file, images, names))), encoding="utf-8")
    if not written:
        raise UserError(f"{root}: no image is left to write: convattn check-data lists what is wrong")
    return written


def _content(file: CocoFile, images: DetectionImages, names: list[str]) -> dict[str, Any]:
    content = images.coco_dataset()
    content["categories"] = [{"id": id, "name": name} for id, name in file.categories]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    for annotation in content["annotations"]:
        annotation["category_id"] = images.category_ids[annotation["category_id"] - 1]
    return content


def _names(images: DetectionImages) -> list[str]:
    """Return a file name for each image: its own, with its folders where two are alike."""
    lasts = [entry.file.replace("\\", "/").rpartition("/")[2] for entry in images.entries]
    counts = Counter(name.lower() for name in lasts)
    names = []
    for entry, last in zip(images.entries, lasts, strict=True):
        parts = [part for part in entry.file.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        name = last if counts[last.lower()] == 1 else "_".join(parts)
        names.append(name if Path(name).suffix else f"{name}.{_ending(images.root / entry.file)}")
    return names


def _ending(file: ImageFile) -> str:
    with open_file(file) as stream:
        return (read_header(stream, file).format or "png").lower()


def _place(source: ImageFile, target: Path) -> None:
    if isinstance(source, Path):
        try:
            os.link(source.resolve(), target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, target)
    else:
        with source.open() as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)
