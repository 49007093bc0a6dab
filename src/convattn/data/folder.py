"""Folders of images, one subfolder per class, as a data set."""

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convattn.data.images import ImageError, check_image, is_image_name, open_image
from convattn.data.names import composed, counted, validation_names
from convattn.data.types import ClassificationData, SkippedFile
from convattn.errors import UserError, user_path

VAL_NAMES = ("val", "valid", "validation")
"""Folder names that hold the held-out images beside ``train/``."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(VAL_NAMES, "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What the names of folders say of their part of a data set, in lower case."""

FULL_CHECK_BYTES = 500_000_000
"""Data sets up to this size are decoded whole when they are opened; of larger ones JPEGs are checked by their marks."""

LAYOUT = """expected one of
  ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg   (your own split)
  ROOT/CLASS/*.jpg                                   (a fixed part of each class is held out)"""

TRAINED_ON = "it is among the training images too, under this or another name"
"""Why an image is not validated on."""

Item = tuple[str, int]
"""An image's path below the data folder, and its label."""

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all) while a folder is opened."""


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, in the order of their paths; each is opened when it is asked for."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as upright RGB."""
        return open_image(self.root / self.files[index])

    def label(self, index: int) -> int:
        """Return the class of image ``index``."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of image ``index`` below the data folder."""
        return self.files[index]


def open_folder(
    root: str | os.PathLike[str], *, val_fraction: float = 0.2, seed: int = 0, progress: Progress | None = None
) -> ClassificationData:
    """Open ``root/train/CLASS/*`` and ``root/val/CLASS/*``, or ``root/CLASS/*`` with a fixed split.

    The names of the parts may have any case and spelling, as ``Training/`` or ``validation_set/``. Subfolders of a
    class belong to it, endings count in any case, hidden files and files that are no images are passed
    over, links are followed. Every image is checked; the bad ones are left out and listed in ``skipped``.

    The split takes ``val_fraction`` of each class (at least one image of two), by a hash of the path and the seed: the
    same on every machine, and hardly changed by a file that comes or goes.

    Raises:
        UserError: The folder or its layout cannot be used; the message says what was found.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     Image.new("RGB", (8, 8)).save(root / name)
        >>> data = open_folder(root, val_fraction=0.5)
        >>> data.classes, len(data.train), len(data.val)
        (['cat', 'dog'], 2, 2)
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction}: the held-out part of each class lies between 0 and 1, as in 0.2")
    root = _existing_folder(root)
    train_name, val_name = _split_names(root)
    if not (root / train_name).is_dir():
        raise UserError(f"{root}: found {val_name}/ but no train/; {LAYOUT}")
    classes = _class_folders(root / train_name, chosen=train_name != ".")
    items = _list_items(root, train_name, classes)
    _require_images(root / train_name, classes, items)
    held_out = [] if val_name is None else _held_out_items(root, val_name, classes, f"{train_name}/")
    skipped = _find_bad(root, [*items, *held_out], progress)
    bad = {file.path for file in skipped}
    items = [item for item in items if item[0] not in bad]
    _require_readable(root / train_name, classes, items, skipped)
    if val_name is None:
        items, held_out = _split(items, len(classes), val_fraction, seed)
    held_out = [item for item in held_out if item[0] not in bad]
    trained = shared_files((root / file for file, _ in items), (root / file for file, _ in held_out))
    skipped += [SkippedFile(file, TRAINED_ON) for file, _ in held_out if root / file in trained]
    held_out = [item for item in held_out if root / item[0] not in trained]
    if not held_out:
        raise UserError(f"{root}: no readable image is left to validate on; add images{_first(skipped)}")
    return ClassificationData(classes, _images(root, items), _images(root, held_out), skipped)


def open_held_out(
    root: str | os.PathLike[str], classes: list[str], *, progress: Progress | None = None
) -> tuple[FolderImages, list[SkippedFile]]:
    """Open the images of known classes to validate on: those of ``root/val`` if there is one, else all of ``root``.

    Raises:
        UserError: The folder cannot be used, or holds a class that is not among ``classes``.
    """
    root = _existing_folder(root)
    items = _held_out_items(root, _split_names(root)[1] or ".", classes, "the model")
    skipped = _find_bad(root, items, progress)
    bad = {file.path for file in skipped}
    good = [item for item in items if item[0] not in bad]
    if not good:
        raise UserError(f"{root}: none of its {counted(len(items), 'image')} can be read{_first(skipped)}")
    return _images(root, good), skipped


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
        below = Path(parent).relative_to(folder)
        found += [(below / name).as_posix() for name in files if is_image_name(name)]
    return sorted(found)


def file_key(path: Path) -> tuple[int, int] | None:
    """Return what a file is known by whatever its name, None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def shared_files(train: Iterable[Path], val: Iterable[Path]) -> set[Path]:
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


def _split_names(root: Path) -> tuple[str, str | None]:
    """Return the folders below ``root`` that hold the classes to train and to validate on.

    ``train`` or ``val`` without subfolders is a class of that name, not a split.
    """
    parts = {name: role for name in _subfolders(root) if (role := split_role(name)) and _subfolders(root / name)}
    train = [name for name, role in parts.items() if role == "train"]
    val = [name for name, role in parts.items() if role == "val"]
    if len(train) > 1 or len(val) > 1:
        raise UserError(f"{root}: found {name_some(train if len(train) > 1 else val)} for one part; {LAYOUT}")
    if train or (val and all(split_role(name) in ("val", "test") for name in _subfolders(root))):
        return _undoubled(root, train[0]) if train else "train", _undoubled(root, val[0]) if val else None
    return ".", None


def split_role(name: str) -> str | None:
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


def _list_items(root: Path, below: str, classes: list[str]) -> list[Item]:
    """List the images of ``root/below/CLASS`` by class and path; accents may be written in either Unicode form."""
    labels = {composed(name): label for label, name in enumerate(classes)}
    folders = sorted((labels[composed(name)], name) for name in _subfolders(root / below) if composed(name) in labels)
    return [
        ((Path(below) / name / file).as_posix(), label)
        for label, name in folders
        for file in list_images(root / below / name)
    ]


def _held_out_items(root: Path, below: str, classes: list[str], owner: str) -> list[Item]:
    """List the images to validate on; a class with images that ``owner`` does not know is an error."""
    folder = root / below
    known = set(map(composed, classes))
    strange = [name for name in _subfolders(folder) if composed(name) not in known and list_images(folder / name)]
    if strange:
        raise UserError(
            f"{folder}: {name_some(strange)} not among the {len(classes)} classes of {owner} ({name_some(classes)}); "
            "rename or remove the folder"
        )
    items = _list_items(root, below, classes)
    if not items:
        raise UserError(f"{folder}: found no images in folders named after the classes ({name_some(classes)})")
    return items


def _require_images(folder: Path, classes: list[str], items: list[Item]) -> None:
    """Raise where a class folder has no image."""
    present = {label for _, label in items}
    empty = [name for label, name in enumerate(classes) if label not in present]
    if len(empty) == len(classes):
        raise UserError(f"{folder}: found {counted(len(classes), 'folder')} but no image in them; {LAYOUT}")
    if empty:
        raise UserError(f"{folder}: no images in the class folder {name_some(empty)}; add images or remove the folder")


def _require_readable(folder: Path, classes: list[str], items: list[Item], skipped: list[SkippedFile]) -> None:
    """Raise where none of a class's images can be read."""
    present = {label for _, label in items}
    lost = [name for label, name in enumerate(classes) if label not in present]
    if lost:
        raise UserError(f"{folder}: no image of the class {name_some(lost)} can be read{_first(skipped)}")


def _find_bad(root: Path, items: list[Item], progress: Progress | None) -> list[SkippedFile]:
    """Check every image in threads and return those that cannot be read."""
    decode = sum(_size(root / file) for file, _ in items) <= FULL_CHECK_BYTES

    def check(file: str) -> SkippedFile | None:
        try:
            check_image(root / file, decode=decode)
        except ImageError as error:
            return SkippedFile(file, error.reason)
        return None

    def check_all(files: list[str]) -> list[SkippedFile | None]:
        return [check(file) for file in files]

    # Some files per task: the pool queues all its tasks at once, and there may be millions of files.
    step = min(256, 1 + len(items) // 64)
    tasks = ([file for file, _ in items[start : start + step]] for start in range(0, len(items), step))
    bad, done = [], 0
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for results in pool.map(check_all, tasks):
            bad += [result for result in results if result is not None]
            done += len(results)
            if progress is not None:
                progress(done, len(items))
    return bad


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _split(items: list[Item], classes: int, val_fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split the images of each class; those with the smallest hashes are held out."""
    by_class: list[list[Item]] = [[] for _ in range(classes)]
    for item in items:
        by_class[item[1]].append(item)
    chosen: set[str] = set()
    for members in by_class:
        chosen |= validation_names([file for file, _ in members], val_fraction, salt=f"{seed}/")
    return [item for item in items if item[0] not in chosen], [item for item in items if item[0] in chosen]


def _images(root: Path, items: list[Item]) -> FolderImages:
    return FolderImages(root, tuple(file for file, _ in items), tuple(label for _, label in items))


def _first(skipped: list[SkippedFile]) -> str:
    """Name the first of the skipped files, to follow a message."""
    return f"; {len(skipped)} skipped, the first {skipped[0].path}: {skipped[0].reason}" if skipped else ""


def name_some(names: list[str], limit: int = 5) -> str:
    """Return the first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
