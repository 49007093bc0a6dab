"""Where the files of a COCO data set lie: its annotation files, and the images that they name."""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from convattn.data.folder import VAL_NAMES
from convattn.data.names import counted
from convattn.data.packed import Folder, ImageFile
from convattn.data.types import Split
from convattn.errors import UserError, user_path

FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
"""The Unicode forms that systems write file names in: an accent in one character with its letter, or after it."""

COCO_LAYOUT = """expected one of
  ROOT/annotations/instances_train*.json and instances_val*.json, with the images in ROOT/train*/ or ROOT/images/
  ROOT/train/*.json with ROOT/val/*.json (or valid/), the images beside them
  ROOT/train.json with ROOT/val.json, the images in ROOT/images/
  one annotations.json                     (a fixed part of its images is held out)"""


def find_annotations(root: str | os.PathLike[str]) -> dict[Split, Path]:
    """Return the annotation file of each split; where one file holds all it is that of "train".

    Raises:
        UserError: There are none, or it is not clear which are meant.
    """
    path = user_path(root)
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    files = annotation_files(path)
    parts: dict[Split | None, list[Path]] = {}
    for file in files:
        parts.setdefault(split_of(path, file), []).append(file)
    test: dict[Split, Path] = {"test": parts["test"][0]} if len(parts.get("test", ())) == 1 else {}
    train, val, others = (parts.get(split, []) for split in ("train", "val", None))
    if len(train) == 1 and len(val) == 1:
        return {"train": train[0], "val": val[0], **test}
    if not val and (len(train) + len(others) == 1 or len(files) == 1):
        return {**test, "train": [*train, *others, *files][0]}
    found = ", ".join(str(file.relative_to(path)) for file in files[:8]) or "no JSON file"
    raise UserError(f"{path}: found {found}; {COCO_LAYOUT}; or name one annotation file")


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files that can be annotations: in ``root``, its ``annotations/`` and its splits' folders.

    COCO's captions and key points beside the instances are passed over.
    """
    folders = [root, root / "annotations", *(root / name for name in ("train", *VAL_NAMES, "test"))]
    found = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
    found = [file for file in found if not file.name.startswith(".") and file.name != "scenes.json"]
    instances = [file for file in found if file.name.startswith("instances_")]
    return instances or found


def image_folders(annotations: Path) -> list[Path]:
    """Return the folders that may hold an annotation file's images, the likeliest first."""
    stem = annotations.stem
    names = dict.fromkeys(
        [stem, stem.partition("_")[2], *re.findall(r"train\d*|val\d*|valid|validation|test\d*", stem)]
    )
    near = [annotations.parent, annotations.parent.parent]
    below = [base / folder / name for base in near for folder in ("images", "") for name in names if name]
    return [folder for folder in [*below, *(base / "images" for base in near), *near] if folder.is_dir()]


def find_images(annotations: Path, names: Sequence[str]) -> Path:
    """Return the folder that holds the most of a sample of an annotation file's images.

    Raises:
        UserError: None is found.
    """
    sample = names[:: max(1, len(names) // 50)]
    folders = image_folders(annotations)
    counts = [sum(image_file(folder, name) is not None for name in sample) for folder in folders]
    if max(counts, default=0) == 0 and names:
        looked = ", ".join(str(folder) for folder in folders)
        similar = similar_files()
        near = next((found for folder in folders if (found := similar(folder, names[0]))), None)
        remedy = "put them beside the file in images/, or name their folder"
        if near is not None:
            remedy = f"there is {near}: write in file_name what the image is called, from its folder of images on"
        raise UserError(
            f"{annotations}: found none of its {counted(len(names), 'image')}, as {names[0]}, in {looked}; {remedy}"
        )
    return folders[counts.index(max(counts))]


def image_file(folder: Folder, name: str) -> str | None:
    """Return the path below a folder of the image that an annotation file calls so, None where there is none.

    Where no file has the very name, a backslash parts folders, and an accent may be one character or two.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "train").mkdir()
        >>> (folder / "train" / "1.png").touch()
        >>> [image_file(folder, name) for name in ("train/1.png", "train" + chr(92) + "1.png", "1.png")]
        ['train/1.png', 'train/1.png', None]
    """
    slashed = name.replace("\\", "/")
    for exact in (name, slashed):
        if is_file(folder / exact):
            return exact
    found = [other for form in FORMS if is_file(folder / (other := unicodedata.normalize(form, slashed)))]
    return found[0] if len(found) == 1 else None


def similar_files() -> Callable[[Folder, str], Path | None]:
    """Return what finds a file that may be meant by a name that none has.

    It has the name's last part, in any case, and lies in that folder or where the name says. Each folder is read once.
    """

    @cache
    def listing(place: Path) -> dict[str, str]:
        try:
            return {name.lower(): name for name in os.listdir(place)}
        except OSError:
            return {}

    def similar(folder: Folder, name: str) -> Path | None:
        if not isinstance(folder, Path):
            return None
        slashed = Path(name.replace("\\", "/"))
        places = (place for place in ((folder / slashed).parent, folder) if slashed.name.lower() in listing(place))
        place = next(places, None)
        return None if place is None else place / listing(place)[slashed.name.lower()]

    return similar


def is_file(path: ImageFile) -> bool:
    """Tell whether a path leads to a file that can be looked at."""
    try:
        return path.is_file()
    except OSError:  # a name too long for the disk, a folder that may not be looked into
        return False


def split_of(root: Path, file: Path) -> Split | None:
    """Return the split that the path of an annotation file below ``root`` names."""
    words = set(re.split(r"[^a-z]+", "/".join(file.relative_to(root).with_suffix("").parts).lower()))
    if words & set(VAL_NAMES):
        return "val"
    return next((split for split in ("train", "test") if split in words), None)
