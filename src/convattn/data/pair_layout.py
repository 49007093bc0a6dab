"""Where images and their label maps lie: ADE20K's folders, and any folder of images beside a folder of label PNGs."""

import os
from collections.abc import Sequence
from pathlib import Path

from convattn.data.folder import VAL_NAMES, list_images
from convattn.data.forms import PairList
from convattn.data.names import composed, read_names
from convattn.data.problems import Problem
from convattn.data.types import Pair, Split
from convattn.errors import UserError, user_path

LABEL_FOLDERS = ("annotations", "labels", "masks")
"""Folder names that hold the label PNGs beside ``images/``."""

SPLIT_NAMES: tuple[tuple[Split, tuple[str, ...]], ...] = (
    ("train", ("training", "train")),
    ("val", VAL_NAMES),
    ("test", ("test", "testing")),
)

PAIR_LAYOUT = """expected one of
  ROOT/images/training/*.jpg with ROOT/annotations/training/*.png, and both again for validation/   (ADE20K)
  ROOT/images/train/*.jpg with ROOT/labels/train/*.png, and both again for val/
  ROOT/train/images/*.jpg with ROOT/train/labels/*.png, and both again for val/
  ROOT/images/*.jpg with ROOT/labels/*.png         (a fixed part is held out)
  labels/ may be called masks/ or annotations/; a label PNG has its image's name and one channel: each pixel's class"""


def find_pair_folders(root: str | os.PathLike[str]) -> dict[Split, Pair]:
    """Return the folders of images and of labels of each split.

    Raises:
        UserError: The folder is in none of the known layouts.
    """
    path = user_path(root)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder of images and label PNGs, {PAIR_LAYOUT}")
    for labels in LABEL_FOLDERS:
        for pattern in ("{kind}/{split}", "{split}/{kind}"):
            found = {
                split: next((both for name in names if (both := _both(path, pattern, name, labels))), None)
                for split, names in SPLIT_NAMES
            }
            if found["train"] is not None:
                return {split: both for split, both in found.items() if both is not None}
        if _has_images(path / "images") and _has_images(path / labels):
            return {"train": ("images", labels)}
    raise UserError(f"{path}: found no images with label PNGs; {PAIR_LAYOUT}")


def list_pairs(root: str | os.PathLike[str]) -> PairList:
    """Return the images of a folder with their label PNGs, and what is without its other half.

    Raises:
        UserError: The folder is in none of the known layouts.
    """
    path, folders = user_path(root), find_pair_folders(root)
    parts: dict[Split, Sequence[Pair]] = {}
    problems: dict[Split, list[Problem]] = {}
    for split, both in folders.items():
        parts[split], problems[split] = _pairs(path, *both)
    labels = str(path / folders["train"][1])
    ade20k = folders["train"] == ("images/training", "annotations/training")
    return PairList(path, path, parts, problems, labels, read_classes(path), zero_is_unlabelled=ade20k)


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


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and bool(list_images(folder))


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
    for file in list_images(root / folder):
        found.setdefault(composed(os.path.splitext(file)[0]), []).append(f"{folder}/{file}")
    return found
