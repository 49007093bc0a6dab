"""Folders of images, one subfolder per class: where the splits and classes are."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from convattn.data.forms import ClassList
from convattn.data.images import is_image_name
from convattn.data.names import composed, counted, name_some
from convattn.data.packed import file_status
from convattn.data.types import ClassificationData, Named, Split
from convattn.errors import UserError, user_path

File = TypeVar("File", bound=str | os.PathLike[str])

VAL_NAMES = ("val", "valid", "validation")
"""Folder names that hold the held-out images beside ``train/``."""

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(VAL_NAMES, "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What the names of folders say of their part of a data set, in lower case."""

LAYOUT = """expected one of
  ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg   (your own split)
  ROOT/CLASS/*.jpg                                   (a fixed part of each class is held out)"""

TRAINED_ON = "it is among the training images too, under this or another name"
"""Why an image is not validated on."""

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all) while a folder is opened."""


def list_class_folders(root: str | os.PathLike[str], held_out: Split | None = None) -> ClassList:
    """Return the images of ``root/train/CLASS/*``, ``root/val/CLASS/*`` and ``root/test``, or of ``root/CLASS/*``.

    With ``held_out`` the images of that split are wanted alone; of a folder without it, all.

    Raises:
        UserError: The folder or its layout cannot be used; the message says what was found.
    """
    root = _existing_folder(root)
    names, classes = _split_names(root), list[str]()
    train = names.get("train", "train" if names else ".")
    if held_out is None:
        if not (root / train).is_dir():
            raise UserError(f"{root}: found {names['val']}/ but no train/; {LAYOUT}")
        classes = _class_folders(root / train, chosen=train != ".")
        names = {"train": train, **({"val": names["val"]} if "val" in names else {})}
    else:
        names = {held_out: names[held_out]} if held_out in names else {"train": train}
    parts = {split: _list_items(root, name) for split, name in names.items()}
    if held_out is None:
        _require_images(root / train, classes, parts["train"])
    places = {split: root / name for split, name in names.items() if name != "."}
    wording = ("in folders named after the classes", "rename or remove the folder")
    return ClassList(root, root, "class folders", classes, parts, places, wording=wording)


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths of all images below ``folder``, relative to it, sorted; links are followed, loops are not.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        ...     (root / name).touch()
        >>> list_images(root)
        ['a.png', 'b.JPG']
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(folder).as_posix()
        start = "" if below == "." else f"{below}/"
        found += [start + name for name in files if is_image_name(name)]
    return sorted(found)


def file_key(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what a file is known by whatever its name, None where it is not there."""
    try:
        found = file_status(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def shared_files(train: Iterable[str | os.PathLike[str]], val: Iterable[File]) -> set[File]:
    """Return the paths of ``val`` that lead to a file of ``train``, by another name or a link.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a").touch()
        >>> shared_files([folder / "a"], [folder / "." / "a"]) == {folder / "a"}
        True
    """
    known = {file_key(path) for path in train} - {None}
    return {path for path in val if file_key(path) in known}


def _existing_folder(root: str | os.PathLike[str]) -> Path:
    path = user_path(root)
    if path.is_dir():
        return path
    what = "not a folder" if path.exists() else "no such folder"
    raise UserError(f"{path}: {what}; give a folder of images, {LAYOUT}")


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError as error:
        raise UserError(f"{folder}: no permission to list it; change its permissions, as in chmod +rx") from error


def _split_names(root: Path) -> dict[Split, str]:
    """Return the folders below ``root`` that hold the classes of each split; none where it holds the classes itself.

    ``train`` or ``val`` without subfolders is a class of that name, not a split.
    """
    found: dict[Split, list[str]] = {}
    for name in _subfolders(root):
        if (role := split_role(name)) and _subfolders(root / name):
            found.setdefault(role, []).append(name)
    twice = next((names for split, names in found.items() if len(names) > 1 and split != "test"), None)
    if twice:
        raise UserError(f"{root}: found {name_some(twice)} for one part; {LAYOUT}")
    only_held_out = all(split_role(name) in ("val", "test") for name in _subfolders(root))
    if "train" in found or ("val" in found and only_held_out):
        return {split: _undoubled(root, names[0]) for split, names in found.items() if len(names) == 1}
    return {}


def split_role(name: str) -> Split | None:
    """Return the part of a data set that a folder's name says it is, in any case and spelling; None for other names.

    Example:
        >>> [split_role(name) for name in ("train", "Training", "training_set", "Validation", "test-images", "cat")]
        ['train', 'train', 'train', 'val', 'test', None]
    """
    words = re.sub(r"[^a-z]", "", name.lower())
    return SPLIT_WORDS.get(re.sub(r"(images|imgs|data|set|dataset|split)$", "", words))


def _undoubled(root: Path, name: str) -> str:
    """Return the folder that holds the classes, where an archive was unpacked into a folder of its own name."""
    return f"{name}/{name}" if _subfolders(root / name) == [name] else name


def _checked_classes(folder: Path, names: list[str]) -> list[str]:
    """Return the names; raise where all the folders hold the same ones, which are rather the classes."""
    inner = [_subfolders(folder / _undoubled(folder, name)) for name in names]
    if len(inner[0]) < 2 or any(other != inner[0] for other in inner):
        return names
    raise UserError(
        f"{folder}: found {name_some(names)}, each with the same folders, {name_some(inner[0])}: these look like the"
        f" classes. Name the folders above them train and val, or put the images of a class into one folder; {LAYOUT}"
    )


def _class_folders(folder: Path, *, chosen: bool) -> list[str]:
    """Return the names of the class folders in ``folder``; raise where there are fewer than two.

    ``chosen``: the folder's name says that it holds them.
    """
    names = _subfolders(folder)
    twice = [name for name in names if name != composed(name) and composed(name) in names]
    if twice:
        raise UserError(f"{folder}: two folders are called {twice[0]}, in two Unicode forms; put their images into one")
    if len(names) >= 2:
        return names if chosen else _checked_classes(folder, names)
    loose = sum(is_image_name(entry.name) for entry in os.scandir(folder))
    if names:
        found = f"only one class folder, {names[0]!r}, and a classifier needs two"
    elif loose:
        found = f"{counted(loose, 'image')} but no class folders"
    else:
        found = "neither class folders nor images"
    raise UserError(f"{folder}: found {found}; {LAYOUT}")


def _list_items(root: Path, below: str) -> list[Named]:
    """List the images of ``root/below/CLASS`` by class and path."""
    start = "" if below == "." else f"{below}/"
    return [
        (f"{start}{name}/{file}", name)
        for name in _subfolders(root / below)
        for file in list_images(root / below / name)
    ]


def _require_images(folder: Path, classes: list[str], items: Sequence[Named]) -> None:
    """Raise where a class folder has no image."""
    present = {name for _, name in items}
    empty = [name for name in classes if name not in present]
    if len(empty) == len(classes):
        raise UserError(f"{folder}: found {counted(len(classes), 'folder')} but no image in them; {LAYOUT}")
    if empty:
        raise UserError(f"{folder}: no images in the class folder {name_some(empty)}; add images or remove the folder")


def open_folder(
    root: str | os.PathLike[str], *, val_fraction: float = 0.2, seed: int = 0, progress: Progress | None = None
) -> ClassificationData:
    """Do what :func:`convattn.data.classes.open_classes` does, by the name that version 0.1 had for it.

    Raises:
        UserError: The data cannot be used; the message says what was found.
    """
    from convattn.data.classes import open_classes  # which reads folders by this module

    return open_classes(root, val_fraction=val_fraction, seed=seed, progress=progress)
