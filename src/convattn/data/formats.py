"""Which format a data set is in. Each format's reader brings it into the forms of :mod:`convattn.data.forms`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from convattn.data import hub, shards, tables, voc, yolo
from convattn.data.coco_layout import annotation_files, find_annotations
from convattn.data.folder import list_class_folders
from convattn.data.forms import ClassList, CocoContent, PairList, split_to_measure
from convattn.data.pair_layout import list_pairs
from convattn.data.remote import data_path, is_url
from convattn.data.types import Split
from convattn.errors import UserError

Read = TypeVar("Read")

CocoParts: TypeAlias = Mapping[Split, Path | CocoContent]
"""The annotations of each split."""


@dataclass(frozen=True)
class Format:
    """A format: how it is recognised, and what it is read as; None for a task whose annotations it does not have.

    Args:
        name: What a person knows it by.
        is_here: Whether a file or folder is in this format.
        classes: Reads a class for each image.
        boxes: Reads boxes, and masks where the format has them.
        maps: Reads label maps.
    """

    name: str
    is_here: Callable[[Path], bool]
    classes: Callable[[Path], ClassList] | None = None
    boxes: Callable[[Path], CocoParts] | None = None
    maps: Callable[[Path], PairList] | None = None

    @property
    def tasks(self) -> str:
        """The tasks that it is for, as a person types them."""
        each = {"classification": self.classes, "detection": self.boxes, "segmentation": self.maps}
        return " or ".join(f"--task {task}" for task, reader in each.items() if reader is not None)

    def read(self, reader: Callable[[Path], Read] | None, root: str | os.PathLike[str], wanted: str) -> Read:
        """Return what one of the readers reads.

        Raises:
            UserError: The format has no such reader, or the data cannot be read.
        """
        if reader is None:
            raise UserError(f"{root}: holds {self.name}, which do not say {wanted}: they are for {self.tasks}")
        return reader(data_path(root))


FORMATS = (
    Format("Hugging Face datasets", hub.is_here, hub.read_classes, hub.read_boxes, hub.read_maps),
    Format("YOLO labels", yolo.is_here, boxes=yolo.read_boxes),
    Format("Pascal VOC annotations", voc.is_here, boxes=voc.read_boxes, maps=voc.read_maps),
    Format("a table of images", tables.is_here, tables.read_classes, maps=tables.read_maps),
    Format("tar shards", shards.is_here, shards.read_classes),
)

UNPACK = "unpack it, and give the folder"
NOT_TAKEN = {
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z"), f"a packed file; {UNPACK}"),
    **dict.fromkeys((".jsonl", ".ndjson"), "JSON lines, which are not read; write a CSV file with path and label"),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "TFRecords, which are not read; write tar shards or images"),
    **dict.fromkeys((".xls", ".xlsx"), "a spreadsheet; save it as CSV, with the columns path and label"),
    ".xml": "one annotation; give the folder above Annotations/ and JPEGImages/",
    ".lmdb": "an LMDB, which is not read; write tar shards or images",
}
"""What people have and is not read, by the ending of its name, and what would do."""

STREAMS = ("hfids", "wds", "tfds")
"""Prefixes of timm's readers whose images come in the order of a stream."""


def format_of(root: str | os.PathLike[str]) -> Format | None:
    """Return the format of a data set, None for class folders, label PNGs and COCO's annotations.

    COCO's annotations come first where a folder holds two formats; naming the file, as ``data.yaml``, chooses.

    Raises:
        UserError: It is of a known kind that is not read; the message says what would do.
    """
    path = data_path(root)
    if is_url(root):
        return FORMATS[-1]  # of what is at a URL, tar shards alone are read
    remedy = NOT_TAKEN.get(path.suffix.lower())
    if remedy and not path.is_dir():
        raise UserError(f"{path}: {remedy}")
    if path.parts and path.parts[0] in STREAMS and not path.exists():
        raise UserError(
            f"{path}: {path.parts[0]}/ is a stream, and training takes images in an order of its own: give hfds/NAME,"
            " a folder of datasets.save_to_disk, or a folder of tar shards"
        )
    found = next((one for one in FORMATS if one.is_here(path)), None)
    if found is not None and path.is_dir() and found.name != FORMATS[0].name and annotation_files(path):
        return None
    return found


def class_list(root: str | os.PathLike[str], held_out: Split | None = None) -> ClassList:
    """Return a data set's images with a class each; ``held_out`` is the split that is wanted alone.

    Raises:
        UserError: The data has no classes, or cannot be read.
    """
    found = format_of(root)
    if found is None:
        return list_class_folders(root, held_out)
    return found.read(found.classes, root, "a class for each image")


def coco_parts(root: str | os.PathLike[str]) -> CocoParts:
    """Return a data set's boxes and masks by split: COCO files, or what was read of another format.

    Raises:
        UserError: The data has no boxes, or cannot be read.
    """
    found = format_of(root)
    return find_annotations(root) if found is None else found.read(found.boxes, root, "boxes")


def coco_part(root: str | os.PathLike[str], split: Split) -> Path | CocoContent:
    """Return the boxes and masks of one split to measure on; for "val" the only ones where there is no such split.

    Raises:
        UserError: The data has no such split, or no boxes, or cannot be read.
    """
    path = data_path(root)
    files = annotation_files(path) if path.is_dir() and format_of(path) is None else []
    parts: CocoParts = {"train": files[0]} if len(files) == 1 else coco_parts(root)
    return parts[split_to_measure(parts, split, root)]


def pair_list(root: str | os.PathLike[str]) -> PairList:
    """Return a data set's images with label maps.

    Raises:
        UserError: The data has no label maps, or cannot be read.
    """
    found = format_of(root)
    return list_pairs(root) if found is None else found.read(found.maps, root, "label maps")


def is_name(folder: str) -> bool:
    """Tell whether a setting names a data set of a hub, or a URL, rather than a place on the disk.

    Example:
        >>> is_name("hfds/cifar10"), is_name("s3://bucket/shards/"), is_name("photos/")
        (True, True, False)
    """
    return is_url(folder) or hub.is_name(Path(folder))
