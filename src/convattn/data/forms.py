"""The forms into which the readers of all formats bring a data set: one for classes, one for label maps, one for boxes.

Checks, splits and loaders know these forms alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convattn.data.packed import Folder
from convattn.data.problems import Problem
from convattn.data.types import Named, Pair, SkippedFile, Split
from convattn.errors import UserError


def split_to_measure(parts: Mapping[Split, object], split: Split, source: object) -> Split:
    """Return a split that the data has: for "val" the training images where there are no others.

    Raises:
        UserError: The data has no such split.

    Example:
        >>> split_to_measure({"train": ...}, "val", "photos"), split_to_measure({"train": ..., "test": ...}, "test", "")
        ('train', 'test')
    """
    found: Split = "train" if split == "val" and "val" not in parts else split
    if found not in parts:
        raise UserError(f"{source}: has no {split} images; it has {', '.join(parts) or 'no split'}")
    return found


@dataclass(frozen=True)
class ClassList:
    """The form into which every format of images with a class each is brought, before the images are looked at.

    Args:
        source: The folder or file that errors name.
        root: What the images' names are below.
        kind: What it is, for people.
        classes: The classes by label.
        parts: The images of each split with the names of their classes, by class and name. Without "val" a part of
            "train" is held out.
        places: What errors name of each split, where that is not the source.
        skipped: The entries that are left out.
        wording: How images belong to a class, and what to do about one of an unknown class.
    """

    source: Path
    root: Folder
    kind: str
    classes: list[str]
    parts: Mapping[Split, Sequence[Named]]
    places: Mapping[Split, Path] = field(default_factory=dict)
    skipped: Sequence[SkippedFile] = ()
    wording: tuple[str, str] = ("of the classes", "mend the labels")


@dataclass(frozen=True)
class PairList:
    """The form into which every format of images with label maps is brought, before the files are looked at.

    Args:
        source: The folder or file that errors name.
        root: What the names of the pairs are below.
        parts: The pairs of each split. Without "val" a part of "train" is held out.
        problems: What was wrong in each split and is no pair.
        labels: What errors name of the label maps.
        classes: The classes by id, where the data names them.
        zero_is_unlabelled: Whether the classes count from 1, as in ADE20K.
    """

    source: Path
    root: Folder
    parts: Mapping[Split, Sequence[Pair]]
    problems: Mapping[Split, Sequence[Problem]]
    labels: str
    classes: list[str] | None = None
    zero_is_unlabelled: bool = False


@dataclass(frozen=True)
class CocoContent:
    """The form into which every format of boxes and masks is brought: the lists of a COCO file.

    Args:
        path: The file or folder that errors name.
        lists: ``images``, ``annotations`` and ``categories``.
        images: The folder of the images.
        lines: By annotation id, the file and line that it was read from.
        problems: What was wrong and is not in the lists.
    """

    path: Path
    lists: dict[str, Any]
    images: Folder
    lines: Mapping[int, str] = field(default_factory=dict)
    problems: Sequence[Problem] = ()


@dataclass
class CocoLists:
    """A :class:`CocoContent` in the making: images, objects and classes are numbered from 1 in the order they come.

    Args:
        classes: The names of the categories.
        images: What :meth:`add_image` has added.
        annotations: What :meth:`add_object` has added.
        lines: See :class:`CocoContent`.
        problems: What was wrong and is in none of the lists.
    """

    classes: Sequence[str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add_image(self, file: str, size: tuple[int, int] | None) -> None:
        """Add an image of (width, height), where that is known."""
        sides = {} if size is None else {"width": size[0], "height": size[1]}
        self.images.append({"id": len(self.images) + 1, "file_name": file, **sides})

    def add_object(self, line: str, entry: Mapping[str, Any]) -> None:
        """Add an object of the last image, with the file and line that it was read from."""
        id = len(self.annotations) + 1
        self.annotations.append({"id": id, "image_id": len(self.images), **entry})
        self.lines[id] = line

    def content(self, path: Path, folder: Folder) -> CocoContent:
        """Return the form; its arguments are those of :class:`CocoContent`."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, 1)]
        lists = {"images": self.images, "annotations": self.annotations, "categories": categories}
        return CocoContent(path, lists, folder, self.lines, self.problems)
