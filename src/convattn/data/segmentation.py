"""Images with a label map each, from any format: checked and split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from PIL import Image

from convattn.data.files import decode_all, image_fault, in_threads, upright_size
from convattn.data.folder import TRAINED_ON, Progress, shared_files
from convattn.data.formats import pair_list
from convattn.data.forms import PairList, split_to_measure
from convattn.data.images import ImageError, open_ids, open_image
from convattn.data.names import HeldOut, check_held_out, counted, name_some, validation_names
from convattn.data.packed import Folder
from convattn.data.problems import BadData, Problem, errors, refuse_or_skip
from convattn.data.types import DataSet, Pair, SkippedFile, Split
from convattn.errors import UserError, names_its_file

IGNORE = 255
"""The id of pixels that count nowhere, neither in the loss nor in the mIoU."""


@dataclass(frozen=True)
class SegmentationImages:
    """Images and their label PNGs; each is opened when it is asked for."""

    root: Folder
    pairs: tuple[Pair, ...]
    num_classes: int
    reduce_zero_label: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as upright RGB."""
        return open_image(self.root / self.pairs[index][0])

    def label_map(self, index: int) -> np.ndarray:
        """Return the class of each pixel of image ``index``, int64 [H, W]; 255 counts nowhere.

        Raises:
            BadData: The file is no label map, or holds an id that is no class.
        """
        file = self.root / self.pairs[index][1]
        labels = reduce_zero(read_label_map(file)) if self.reduce_zero_label else read_label_map(file)
        fault = ids_fault(label_ids(labels), self.num_classes, int(self.reduce_zero_label))
        if fault is not None:
            raise BadData([Problem(str(file), None, "ids", *fault)])
        return labels

    def name(self, index: int) -> str:
        """Return the path of image ``index`` below the data folder."""
        return self.pairs[index][0]


SegmentationData: TypeAlias = DataSet[SegmentationImages]
"""A data set for semantic segmentation; its classes are in the order of their ids."""


def open_segmentation(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    val_fraction: HeldOut = 0.2,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> SegmentationData:
    """Open a folder of images and label PNGs.

    Args:
        root: The folder, in one of the layouts of ``PAIR_LAYOUT`` or as Pascal VOC's, or a table.
        classes: The classes by id; without them those of ``classes.txt`` (one a line) or ADE20K's ``objectInfo150.txt``
            in ``root``, else as many as the ids in the training labels ask for.
        reduce_zero_label: Whether id 0 means "not labelled" and the classes count from 1, as in ADE20K; None takes it
            for folders called as ADE20K's.
        val_fraction: The part of the pairs that is held out where the folder has no split, by a hash of the name.
        skip_bad: Go on without the wrong pairs.
        progress: Called with (pairs checked, pairs in all).

    Raises:
        BadData: Something is wrong, and ``skip_bad`` is off; or nothing is left.
        UserError: There is no such layout.
    """
    found = pair_list(root)
    check_held_out(val_fraction, own_val="val" in found.parts, source=found.source)
    reduce = found.zero_is_unlabelled if reduce_zero_label is None else reduce_zero_label
    names = list(classes) if classes is not None else found.classes
    *parts, problems = check_pairs(found, names, reduce_zero_label=reduce, progress=progress)
    train, val, more = check_parts(found, *parts, val_fraction=val_fraction)
    skipped = refuse_or_skip([*problems, *more], skip_bad=skip_bad)
    return SegmentationData(names or [f"class {id}" for id in range(train.num_classes)], train, val, skipped)


def check_pairs(
    found: PairList,
    classes: Sequence[str] | None,
    *,
    reduce_zero_label: bool = False,
    progress: Progress | None = None,
) -> tuple[SegmentationImages, SegmentationImages, list[Problem]]:
    """Return the usable training and validation pairs, and every problem of the others; every file is read."""
    parts = [found.parts.get("train", ()), found.parts.get("val", ())]
    problems = [problem for split in ("train", "val") for problem in found.problems.get(split, ())]
    every = [*parts[0], *parts[1]]
    decode = decode_all([found.root / image for image, _ in every])

    def look(pair: Pair) -> "_Look":
        return _look(found.root, pair, decode, reduce_zero_label)

    looks = dict(zip(every, in_threads(look, every, progress), strict=True))
    problems += [problem for one in looks.values() for problem in one.problems]
    count = len(classes) if classes is not None else _count_classes([looks[pair].ids for pair in parts[0]])
    for (_, label), one in looks.items():
        fault = ids_fault(one.ids, count, int(reduce_zero_label))
        if fault is not None:
            one.problems.append(Problem(str(found.root / label), None, "ids", *fault))
            problems.append(one.problems[-1])
    good = [tuple(pair for pair in part if not errors(looks[pair].problems)) for part in parts]
    names = classes if classes is not None else [str(id + reduce_zero_label) for id in range(count)]
    problems += _class_problems(found.labels, names, [looks[pair].ids for pair in good[0]])
    train, val = (SegmentationImages(found.root, pairs, count, reduce_zero_label) for pairs in good)
    return train, val, problems


def check_parts(
    found: PairList, train: SegmentationImages, val: SegmentationImages, *, val_fraction: HeldOut = 0.2
) -> tuple[SegmentationImages, SegmentationImages, list[Problem]]:
    """Return the pairs to train and to validate on, and what is wrong between them.

    Where the data has one part, ``val_fraction`` of its pairs is held out.
    """
    problems = []
    root = found.root
    if "val" not in found.parts:
        chosen = validation_names([image for image, _ in train.pairs], val_fraction)
        parts = [tuple(pair for pair in train.pairs if (pair[0] in chosen) == held) for held in (False, True)]
    else:
        shared = shared_files((root / image for image, _ in train.pairs), [root / image for image, _ in val.pairs])
        remedy = "remove it from one of the two parts"
        problems = [Problem(str(place), None, "image", TRAINED_ON, remedy) for place in sorted(shared, key=str)]
        parts = [train.pairs, tuple(pair for pair in val.pairs if root / pair[0] not in shared)]
    for part, pairs in zip(("training", "validation"), parts, strict=True):
        if not pairs:
            what = f"no {part} pair is left"
            problems.append(Problem(str(found.source), None, "", what, "add images with label maps", level="fatal"))
    training, validating = (replace(train, pairs=pairs) for pairs in parts)
    return training, validating, problems


def open_part(
    root: str | os.PathLike[str],
    classes: Sequence[str],
    *,
    split: Split = "val",
    reduce_zero_label: bool | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], SegmentationImages, list[SkippedFile]]:
    """Open one split to measure on, for "val" all pairs where there is no such split.

    ``classes`` are those of the network; classes that the data names take their place.

    Raises:
        UserError: There are no such pairs.
    """
    found = pair_list(root)
    part = split_to_measure(found.parts, split, found.source)
    names = found.classes or list(classes)
    reduce = found.zero_is_unlabelled if reduce_zero_label is None else reduce_zero_label
    alone = replace(found, parts={"train": found.parts[part]}, problems={"train": found.problems.get(part, ())})
    images, _, problems = check_pairs(alone, names, reduce_zero_label=reduce, progress=progress)
    skipped = refuse_or_skip(problems, skip_bad=True)
    if not len(images):
        raise UserError(f"{found.source}: no pair is left to measure on" + (f"; {problems[0]}" if problems else ""))
    return names, images, skipped


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the ids of a label map as they stand in it, int64 [H, W]: grey of 1 to 32 bits, or palette indices.

    A PNG, TIFF, BMP, GIF, TGA or PGM file.

    Raises:
        BadData: The file cannot be read, has colours in place of ids, or a format that changes them, as JPEG does.
    """
    try:
        return open_ids(path)
    except ImageError as error:
        problem = Problem(str(path), None, "label map", error.reason, error.remedy)
        raise BadData([problem]) from error


@names_its_file
def write_label_map(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Save ids of 0 to 255, [H, W], as an 8-bit grey PNG.

    Example:
        >>> import tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "a.png")
        >>> write_label_map(file, np.array([[0, 7], [255, 1]]))
        >>> read_label_map(file).tolist()
        [[0, 7], [255, 1]]
    """
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() <= IGNORE:
        raise ValueError(f"label ids from {labels.min()} to {labels.max()}: a label PNG holds 0 to {IGNORE}")
    Image.fromarray(labels.astype(np.uint8)).save(path, "PNG", compress_level=1)


def reduce_zero(labels: np.ndarray) -> np.ndarray:
    """Return ids counted from 1 as ids from 0; 0, "not labelled", becomes 255.

    Example:
        >>> reduce_zero(np.array([0, 1, 150, 255])).tolist()
        [255, 0, 149, 255]
    """
    return np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1)


def label_ids(labels: np.ndarray) -> np.ndarray:
    """Return the ids that a label map holds, in order.

    Example:
        >>> label_ids(np.array([[7, 0], [7, 255]])).tolist()
        [0, 7, 255]
    """
    return np.flatnonzero(np.bincount(labels.ravel())) if labels.min(initial=0) >= 0 else np.unique(labels)


def ids_fault(ids: np.ndarray, num_classes: int, first: int = 0) -> tuple[str, str] | None:
    """Return what is wrong with the ids (from 0) of a label map; ``first`` is the number of class 0 in its file.

    Example:
        >>> ids_fault(np.array([0, 2, 255]), 3) is None, ids_fault(np.array([0, 7]), 3)[0]
        (True, 'id 7 is no class: the 3 classes are 0 to 2, and 255 is not labelled')
    """
    wrong = [int(id) + first for id in ids if id != IGNORE and not 0 <= id < num_classes]
    if not wrong:
        return None
    found = f"id {wrong[0]} is" if len(wrong) == 1 else f"ids {', '.join(map(str, wrong[:5]))} are"
    known = f"the {num_classes} classes are {first} to {num_classes + first - 1}, and {IGNORE} is not labelled"
    return f"{found} no class: {known}", "mend the ids, or name all classes in classes.txt"


@dataclass(frozen=True)
class _Look:
    """What a pair holds: its ids, counted from 0, and its problems."""

    ids: np.ndarray
    problems: list[Problem]


def _look(root: Folder, pair: Pair, decode: bool, reduce: bool) -> _Look:
    image, label = root / pair[0], root / pair[1]
    problems = []
    fault = image_fault(image, decode=decode)
    if fault is not None:
        problems.append(Problem(str(image), None, "image", *fault))
    try:
        labels = read_label_map(label)
    except BadData as error:
        return _Look(np.zeros(0, np.int64), [*problems, *error.problems])
    height, width = labels.shape
    if fault is None and upright_size(image) != (width, height):
        size = "{}×{}".format(*upright_size(image))
        what = f"the label map is {width}×{height}, its image {os.path.basename(image)} is {size}"
        problems.append(Problem(str(label), None, "size", what, "save the label map at its image's size"))
    ids = label_ids(reduce_zero(labels) if reduce else labels)
    if not (ids != IGNORE).any():
        what, remedy = "no pixel is labelled", "nothing to do: it counts nowhere"
        problems.append(Problem(str(label), None, "ids", what, remedy, level="note"))
    return _Look(ids, problems)


def _count_classes(ids: Sequence[np.ndarray]) -> int:
    """Return how many classes the ids ask for; those beyond 255 are left to the check."""
    found = np.concatenate([np.zeros(0, np.int64), *ids])
    return int(found[found < IGNORE].max(initial=-1)) + 1


def _class_problems(folder: str, classes: Sequence[str], ids: Sequence[np.ndarray]) -> list[Problem]:
    """Tell which classes the label maps to train on teach: none, one alone, or not all."""
    found = set(np.concatenate([np.zeros(0, np.int64), *ids]).tolist()) - {IGNORE}
    if not ids:
        return []
    if not found:
        what = "no pixel of its label maps has a class"
        return [Problem(folder, None, "", what, f"give the classes numbers below {IGNORE}", level="fatal")]
    if len(classes) < 2:
        what = "the labels hold one class only"
        remedy = f"number them; {IGNORE} means not labelled: a mask of two classes is saved as 0 and 1, not 0 and 255"
        return [Problem(folder, None, "", what, remedy, level="fatal")]
    unused = [name for id, name in enumerate(classes) if id not in found]
    what = f"{len(unused)} of {counted(len(classes), 'class')} without a pixel: {name_some(unused)}"
    remedy = "nothing to do, if that is meant: none is learned"
    return [Problem(folder, None, "ids", what, remedy, level="note")] if unused else []
