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
