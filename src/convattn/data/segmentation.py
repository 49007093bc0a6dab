"""Images with a label map each: ADE20K's folders, and any folder of images beside a folder of label PNGs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.data.files import decode_all, image_fault, in_threads, upright_size
from convattn.data.folder import TRAINED_ON, VAL_NAMES, Progress, list_images, name_some, shared_files
from convattn.data.images import ImageError, open_ids, open_image
from convattn.data.names import composed, counted, read_names, validation_names
from convattn.data.problems import BadData, Problem, errors, refuse_or_skip
from convattn.data.types import SkippedFile
from convattn.errors import UserError, names_its_file, user_path

IGNORE = 255
"""The id of pixels that count nowhere, neither in the loss nor in the mIoU."""

LABEL_FOLDERS = ("annotations", "labels", "masks")
"""Folder names that hold the label PNGs beside ``images/``."""

TRAIN_NAMES = ("training", "train")

PAIR_LAYOUT = """expected one of
  ROOT/images/training/*.jpg with ROOT/annotations/training/*.png, and both again for validation/   (ADE20K)
  ROOT/images/train/*.jpg with ROOT/labels/train/*.png, and both again for val/
  ROOT/train/images/*.jpg with ROOT/train/labels/*.png, and both again for val/
  ROOT/images/*.jpg with ROOT/labels/*.png         (a fixed part is held out)
  labels/ may be called masks/ or annotations/; a label PNG has its image's name and one channel: each pixel's class"""

Pair = tuple[str, str]
"""An image's path below the data folder, and its label PNG's."""


@dataclass(frozen=True)
class SegmentationImages:
    """Images and their label PNGs; each is opened when it is asked for."""

    root: Path
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
        file = str(self.root / self.pairs[index][1])
        labels = reduce_zero(read_label_map(file)) if self.reduce_zero_label else read_label_map(file)
        fault = ids_fault(label_ids(labels), self.num_classes, int(self.reduce_zero_label))
        if fault is not None:
            raise BadData([Problem(file, None, "ids", *fault)])
        return labels

    def name(self, index: int) -> str:
        """Return the path of image ``index`` below the data folder."""
        return self.pairs[index][0]


@dataclass(frozen=True)
class SegmentationData:
    """A data set for semantic segmentation: its classes by id, the two splits and what was left out."""

    classes: list[str]
    train: SegmentationImages
    val: SegmentationImages
    skipped: list[SkippedFile] = field(default_factory=list)


@dataclass(frozen=True)
class PairFolders:
    """Where the pairs of a data folder lie: folders of images and of labels, for training and validation.

    ``val`` is None where one part holds all; ``ade20k`` says that the folders are called as ADE20K's.
    """

    root: Path
    train: Pair
    val: Pair | None
    ade20k: bool = False


def open_segmentation(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> SegmentationData:
    """Open a folder of images and label PNGs.

    Args:
        root: The folder, in one of the layouts of ``PAIR_LAYOUT``.
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
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction}: the held-out part of the pairs lies between 0 and 1, as in 0.2")
    folders = find_pair_folders(root)
    reduce = folders.ade20k if reduce_zero_label is None else reduce_zero_label
    names = list(classes) if classes is not None else read_classes(folders.root)
    *parts, problems = check_pairs(folders, names, reduce_zero_label=reduce, progress=progress)
    train, val, more = check_parts(folders, *parts, val_fraction=val_fraction)
    skipped = refuse_or_skip([*problems, *more], skip_bad=skip_bad)
    return SegmentationData(names or [f"class {id}" for id in range(train.num_classes)], train, val, skipped)


def check_pairs(
    folders: PairFolders,
    classes: Sequence[str] | None,
    *,
    reduce_zero_label: bool = False,
    progress: Progress | None = None,
) -> tuple[SegmentationImages, SegmentationImages, list[Problem]]:
    """Return the usable training and validation pairs, and every problem of the others; every file is read."""
    parts, problems = [], []
    for part in (folders.train, folders.val):
        pairs, alone = ((), []) if part is None else _pairs(folders.root, *part)
        parts.append(pairs)
        problems += alone
    every = [*parts[0], *parts[1]]
    decode = decode_all([folders.root / image for image, _ in every])

    def look(pair: Pair) -> "_Look":
        return _look(folders.root, pair, decode, reduce_zero_label)

    looks = dict(zip(every, in_threads(look, every, progress), strict=True))
    problems += [problem for one in looks.values() for problem in one.problems]
    count = len(classes) if classes is not None else _count_classes([looks[pair].ids for pair in parts[0]])
    for (_, label), one in looks.items():
        fault = ids_fault(one.ids, count, int(reduce_zero_label))
        if fault is not None:
            one.problems.append(Problem(str(folders.root / label), None, "ids", *fault))
            problems.append(one.problems[-1])
    good = [tuple(pair for pair in part if not errors(looks[pair].problems)) for part in parts]
    names = classes if classes is not None else [str(id + reduce_zero_label) for id in range(count)]
    problems += _class_problems(folders, names, [looks[pair].ids for pair in good[0]])
    train, val = (SegmentationImages(folders.root, pairs, count, reduce_zero_label) for pairs in good)
    return train, val, problems


def check_parts(
    folders: PairFolders, train: SegmentationImages, val: SegmentationImages, *, val_fraction: float = 0.2
) -> tuple[SegmentationImages, SegmentationImages, list[Problem]]:
    """Return the pairs to train and to validate on, and what is wrong between them.

    Where the folder has one part, ``val_fraction`` of its pairs is held out.
    """
    problems = []
    if folders.val is None:
        chosen = validation_names([image for image, _ in train.pairs], val_fraction)
        parts = [tuple(pair for pair in train.pairs if (pair[0] in chosen) == held) for held in (False, True)]
    else:
        shared = shared_files(
            (folders.root / image for image, _ in train.pairs), [folders.root / image for image, _ in val.pairs]
        )
        remedy = "remove it from one of the two parts"
        problems = [Problem(str(place), None, "image", TRAINED_ON, remedy) for place in sorted(shared)]
        parts = [train.pairs, tuple(pair for pair in val.pairs if folders.root / pair[0] not in shared)]
    for part, pairs in zip(("training", "validation"), parts, strict=True):
        if not pairs:
            what = f"no {part} pair is left"
            problems.append(Problem(str(folders.root), None, "", what, "add images with label maps", level="fatal"))
    training, validating = (replace(train, pairs=pairs) for pairs in parts)
    return training, validating, problems


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


def find_pair_folders(root: str | os.PathLike[str]) -> PairFolders:
    """Return where the images and labels lie.

    Raises:
        UserError: The folder is in none of the known layouts.
    """
    path = user_path(root)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder of images and label PNGs, {PAIR_LAYOUT}")
    for labels in LABEL_FOLDERS:
        for train in TRAIN_NAMES:
            for pattern in ("{kind}/{split}", "{split}/{kind}"):
                both = _both(path, pattern, train, labels)
                if both is not None:
                    vals = (_both(path, pattern, val, labels) for val in VAL_NAMES)
                    val = next((pair for pair in vals if pair is not None), None)
                    ade20k = both == ("images/training", "annotations/training")
                    return PairFolders(path, both, val, ade20k)
        if list_images_in(path / "images") and list_images_in(path / labels):
            return PairFolders(path, ("images", labels), None)
    raise UserError(f"{path}: found no images with label PNGs; {PAIR_LAYOUT}")


def read_classes(root: Path) -> list[str] | None:
    """Return the classes that a file of the folder names: ``classes.txt``, or ADE20K's ``objectInfo150.txt``."""
    plain, ade20k = root / "classes.txt", root / "objectInfo150.txt"
    try:
        if plain.is_file():
            lines = (line.strip() for line in plain.read_text(encoding="utf-8").split("\n"))
            return read_names("\n".join(line for line in lines if line))
        if ade20k.is_file():
            rows = [line.split("\t") for line in ade20k.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
            return [row[-1].split(",")[0].strip() for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{plain if plain.is_file() else ade20k}: cannot be read: {error}") from error
    return None


def list_images_in(folder: Path) -> list[str]:
    """Return the images below a folder, none where it does not exist."""
    return list_images(folder) if folder.is_dir() else []


@dataclass(frozen=True)
class _Look:
    """What a pair holds: its ids, counted from 0, and its problems."""

    ids: np.ndarray
    problems: list[Problem]


def _look(root: Path, pair: Pair, decode: bool, reduce: bool) -> _Look:
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
        what = f"the label map is {width}×{height}, its image {image.name} is {size}"
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


def _class_problems(folders: PairFolders, classes: Sequence[str], ids: Sequence[np.ndarray]) -> list[Problem]:
    """Tell which classes the label maps to train on teach: none, one alone, or not all."""
    found = set(np.concatenate([np.zeros(0, np.int64), *ids]).tolist()) - {IGNORE}
    folder = str(folders.root / folders.train[1])
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


def _both(root: Path, pattern: str, split: str, labels: str) -> Pair | None:
    pair = pattern.format(kind="images", split=split), pattern.format(kind=labels, split=split)
    return pair if all((root / folder).is_dir() for folder in pair) else None


def _pairs(root: Path, images: str, labels: str) -> tuple[tuple[Pair, ...], list[Problem]]:
    """Pair the images and labels of two folders by their names without endings."""
    first = _by_stem(root, images)
    second = _by_stem(root, labels)
    problems = []
    for stem, files in sorted([*first.items(), *second.items()]):
        if len(files) > 1:
            what = f"{len(files)} files of the name {stem}, as {os.path.basename(files[0])}"
            problems.append(Problem(str(root / files[1]), None, "pair", what, "keep one of them"))
    for stem in sorted(first.keys() ^ second.keys()):
        file = (first.get(stem) or second[stem])[0]
        other = "label map" if stem in first else "image"
        what = f"no {other} of the name {stem} in {labels if stem in first else images}/"
        problems.append(Problem(str(root / file), None, "pair", what, f"add the {other}, or remove the file"))
    both = sorted(stem for stem in first.keys() & second.keys() if len(first[stem]) == len(second[stem]) == 1)
    return tuple((first[stem][0], second[stem][0]) for stem in both), problems


def _by_stem(root: Path, folder: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in list_images_in(root / folder):
        found.setdefault(composed(os.path.splitext(file)[0]), []).append(f"{folder}/{file}")
    return found
