"""Images with a class each, from any format: checked, split and numbered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from convattn.data.files import decode_all, image_fault, in_threads
from convattn.data.folder import TRAINED_ON, Progress, shared_files
from convattn.data.formats import class_list
from convattn.data.forms import ClassList, split_to_measure
from convattn.data.images import open_image
from convattn.data.names import HeldOut, check_held_out, composed, counted, name_some, validation_names
from convattn.data.packed import Folder, file_in
from convattn.data.remote import is_url
from convattn.data.types import ClassificationData, Item, SkippedFile, Split
from convattn.errors import UserError


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder or a pack, by class and path; each is opened when it is asked for."""

    root: Folder
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as upright RGB."""
        return open_image(file_in(self.root, self.files[index]))

    def fetch(self, indices: Sequence[int]) -> None:
        """Have images of a pack at hand that are read next, where several are read faster together."""
        if not isinstance(self.root, Path):
            self.root.fetch([self.files[index] for index in indices])

    def label(self, index: int) -> int:
        """Return the class of image ``index``."""
        return self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of image ``index`` below the data folder."""
        return self.files[index]


def open_classes(
    root: str | os.PathLike[str], *, val_fraction: HeldOut = 0.2, seed: int = 0, progress: Progress | None = None
) -> ClassificationData:
    """Open images with a class each: class folders, a table, tar shards or a data set of Hugging Face ``datasets``.

    Every image is checked, unless it is at a URL; the bad ones are left out and listed in ``skipped``. Where no images
    are held out, the split takes ``val_fraction`` of each class (at least one image of two), by a hash of the path and
    the seed: the same on every machine, and hardly changed by a file that comes or goes.

    Of class folders, the names of the parts may have any case and spelling, as ``Training/`` or ``validation_set/``.
    Subfolders of a class belong to it, endings count in any case, hidden files and files that are no images are
    passed over, links are followed.

    Raises:
        UserError: The data cannot be used; the message says what was found.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     Image.new("RGB", (8, 8)).save(root / name)
        >>> data = open_classes(root, val_fraction=0.5)
        >>> data.classes, len(data.train), len(data.val)
        (['cat', 'dog'], 2, 2)
    """
    found = class_list(root)
    check_held_out(val_fraction, own_val="val" in found.parts, source=found.source)
    items = _numbered(found, "train", found.classes, "")
    train_place = found.places.get("train", found.source)
    own_val = "val" in found.parts
    owner = f"{os.path.relpath(train_place, found.source)}/" if "train" in found.places else "the training images"
    held_out = _numbered(found, "val", found.classes, owner) if own_val else []
    skipped = [*found.skipped, *_bad(found.root, [*items, *held_out], progress)]
    bad = {file.path for file in skipped}
    items = [item for item in items if item[0] not in bad]
    left = {label for _, label in items}
    lost = [name for label, name in enumerate(found.classes) if label not in left]
    if lost:
        raise UserError(f"{train_place}: no image of the class {name_some(lost)} can be read{_first(skipped)}")
    if not own_val:
        items, held_out = _split(items, len(found.classes), val_fraction, seed)
    held_out = [item for item in held_out if item[0] not in bad]
    names = {file_in(found.root, file): file for file, _ in held_out}
    trained = {names[file] for file in shared_files((file_in(found.root, file) for file, _ in items), names)}
    skipped += [SkippedFile(file, TRAINED_ON) for file, _ in held_out if file in trained]
    held_out = [item for item in held_out if item[0] not in trained]
    if not held_out:
        raise UserError(f"{found.source}: no readable image is left to validate on; add images{_first(skipped)}")
    return ClassificationData(found.classes, _images(found.root, items), _images(found.root, held_out), skipped)


def open_held_out(
    root: str | os.PathLike[str], classes: list[str], *, split: Split = "val", progress: Progress | None = None
) -> tuple[FolderImages, list[SkippedFile]]:
    """Open the images of known classes to measure on: those of a split, to validate on all where there is no such one.

    Raises:
        UserError: The data cannot be used, has no such split, or holds a class that is not among ``classes``.
    """
    found = class_list(root, held_out=split)
    found = replace(found, parts={split: found.parts[split_to_measure(found.parts, split, found.source)]})
    items = _numbered(found, split, classes, "the model")
    skipped = [*found.skipped, *_bad(found.root, items, progress)]
    bad = {file.path for file in skipped}
    good = [item for item in items if item[0] not in bad]
    if not good:
        raise UserError(f"{found.source}: none of its {counted(len(items), 'image')} can be read{_first(skipped)}")
    return _images(found.root, good), skipped


def _numbered(found: ClassList, split: Split, classes: list[str], owner: str) -> list[Item]:
    """Return a split's images with the numbers of their classes; one of a class that ``owner`` lacks is an error."""
    labels = {composed(name): label for label, name in enumerate(classes)}
    part, place = found.parts.get(split, ()), found.places.get(split, found.source)
    named, remedy = found.wording
    strange = list(dict.fromkeys(name for _, name in part if composed(name) not in labels))
    if strange:
        raise UserError(
            f"{place}: {name_some(strange)} not among the {len(classes)} classes of {owner} ({name_some(classes)}); "
            f"{remedy}"
        )
    if not part:
        raise UserError(f"{place}: found no images {named} ({name_some(classes)})")
    return sorted(((file, labels[composed(name)]) for file, name in part), key=lambda item: item[1])


def _bad(root: Folder, items: Sequence[Item], progress: Progress | None) -> list[SkippedFile]:
    """Check every image in threads and return those that cannot be read.

    None is fetched for that from a URL: training passes over the bad ones as it meets them.
    """
    if not isinstance(root, Path) and is_url(root.path):
        return []
    decode = decode_all(file_in(root, file) for file, _ in items)

    def check(file: str) -> SkippedFile | None:
        fault = image_fault(file_in(root, file), decode=decode)
        return None if fault is None else SkippedFile(file, fault[0])

    return [one for one in in_threads(check, [file for file, _ in items], progress) if one is not None]


def _split(items: list[Item], classes: int, val_fraction: HeldOut, seed: int) -> tuple[list[Item], list[Item]]:
    """Split the images of each class; those with the smallest hashes are held out."""
    by_class: list[list[str]] = [[] for _ in range(classes)]
    for file, label in items:
        by_class[label].append(file)
    chosen: set[str] = set()
    for members in by_class:
        chosen |= validation_names(members, val_fraction, salt=f"{seed}/")
    return [item for item in items if item[0] not in chosen], [item for item in items if item[0] in chosen]


def _images(root: Folder, items: Sequence[Item]) -> FolderImages:
    return FolderImages(root, tuple(file for file, _ in items), tuple(label for _, label in items))


def _first(skipped: Sequence[SkippedFile]) -> str:
    """Name the first of the skipped files, to follow a message."""
    return f"; {len(skipped)} skipped, the first {skipped[0].path}: {skipped[0].reason}" if skipped else ""
