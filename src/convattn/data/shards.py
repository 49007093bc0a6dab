"""Tar shards as WebDataset writes them: the files of a sample share their name up to the first point.

The shards are not read as a stream: where each image lies is listed once, and the loaders read any of them in the
order that (seed, epoch) gives, so a run resumes inside an epoch as it does with files.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.folder import SPLIT_WORDS
from convattn.data.forms import ClassList
from convattn.data.images import is_image_name
from convattn.data.numbering import class_names
from convattn.data.packed import PackedFile
from convattn.data.pair_layout import read_classes as named_classes
from convattn.data.types import Named, SkippedFile, Split
from convattn.errors import UserError

LABELS = ("cls", "label", "json")
"""The endings of a sample's label: a number or a name, or JSON with "label"."""

LAYOUT = """expected one of
  ROOT/train-000.tar, train-001.tar ... with ROOT/val-000.tar ...
  ROOT/train/*.tar with ROOT/val/*.tar
  ROOT/*.tar                           (a fixed part of each class is held out)
each sample is NAME.jpg with NAME.cls, the number of its class; classes.txt beside the shards names the classes"""

LARGEST_LABEL = 100_000


def is_here(path: Path) -> bool:
    """Tell whether a path is a tar file, or a folder of them."""
    return bool(_tars(path)) if path.is_dir() else path.suffix.lower() == ".tar"


@dataclass(frozen=True)
class TarPack:
    """The images of tar files; a name is that of the shard, from the folder on, with that of the member."""

    path: Path
    members: dict[str, tuple[Path, int, int]] = field(hash=False, compare=False)

    def place(self, name: str) -> tuple[int, int] | None:
        """Return where a member begins, made unique over the shards, and its size."""
        if name not in self.members:
            return None
        shard, offset, size = self.members[name]
        return (shard.stat().st_ino << 64) + offset, size

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        shard, offset, size = self.members[name]
        return _read_at(shard, offset, size)

    def __truediv__(self, name: str) -> PackedFile:
        return PackedFile(self, name)


def read_classes(path: Path) -> ClassList:
    """Return the images of shards with a class each; samples that cannot be used are left out.

    Raises:
        UserError: A shard cannot be read, or there is no sample to train on.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; name a tar file or a folder of them")
    folder = path if path.is_dir() else path.parent
    pack = TarPack(folder, {})
    skipped: list[SkippedFile] = []
    labels: dict[Split, list[Named]] = {}
    tars: list[tuple[Split, Path]] = _tars(path) if path.is_dir() else [("train", path)]
    for split, shard in tars:
        labels.setdefault(split, []).extend(_samples(pack, folder, shard, skipped))
    classes, names = class_names((label for _, label in labels.get("train", ())), named_classes(folder), str(path))
    if not labels.get("train"):
        first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: found no image with a class to train on{first}; {LAYOUT}")
    parts = {
        split: sorted((file, names.get(label, label)) for file, label in part) for split, part in labels.items() if part
    }
    return ClassList(path, pack, "tar shards", classes, parts, skipped=skipped)


def _tars(folder: Path) -> list[tuple[Split, Path]]:
    """Return the shards of a folder with their splits, which their names or folders say; else all train."""
    found = [(file, file.stem) for file in sorted(folder.glob("*.tar"))]
    found += [
        (file, entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and entry.name.lower() in SPLIT_WORDS
        for file in sorted(entry.glob("*.tar"))
    ]
    splits: list[tuple[Split, Path]] = []
    for file, name in found:
        words = re.split(r"[^a-z]+", name.lower())
        splits.append((next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train"), file))
    return splits


def _samples(pack: TarPack, folder: Path, shard: Path, skipped: list[SkippedFile]) -> Iterator[Named]:
    """Yield the name and label of each image of a shard, and note where its bytes are."""
    below = shard.relative_to(folder).as_posix()
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    for member in _members(shard):
        base, _, ending = member.name.rpartition("/")[2].partition(".")
        key = f"{member.name[: len(member.name) - len(ending) - 1 - len(base)]}{base}"
        kind = images if is_image_name(member.name) else labels if ending.lower() in LABELS else None
        if kind is None or base.startswith((".", "_")) or not base:
            continue
        if key in kind:
            skipped.append(SkippedFile(f"{below}/{member.name}", f"the sample {key} has another, {kind[key].name}"))
            continue
        kind[key] = member
    for key in sorted(images.keys() | labels.keys()):
        image, label = images.get(key), labels.get(key)
        name = f"{below}/{(image or label or tarfile.TarInfo(key)).name}"
        if image is None or label is None:
            what = "image" if image is None else "label: a file of the same name with the ending .cls"
            skipped.append(SkippedFile(name, f"the sample has no {what}"))
            continue
        text = _label(shard, label)
        if isinstance(text, ValueError):
            skipped.append(SkippedFile(f"{below}/{label.name}", str(text)))
            continue
        pack.members[name] = (shard, image.offset_data, image.size)
        yield name, text


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a shard, their content unread."""
    try:
        end = shard.stat().st_size
        with tarfile.open(shard, "r:") as file:
            for member in file:
                last = member.offset_data + member.size
                if last > end:
                    raise UserError(
                        f"{shard}: is truncated: {member.name} ends at byte {last}, the file at {end}; write it again"
                    )
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise UserError(f"{shard}: no tar file, packed, or damaged: {error}; write it again, not packed") from error


def _label(shard: Path, member: tarfile.TarInfo) -> str | ValueError:
    """Return the text of a label, or what is wrong with it."""
    if member.size > LARGEST_LABEL:
        return ValueError(f"the label has {member.size:,} bytes: write the number or name of a class")
    try:
        text = _read_at(shard, member.offset_data, member.size).decode("utf-8").strip()
        if member.name.lower().endswith(".json"):
            content = json.loads(text)
            value = next((content[key] for key in ("label", "cls") if key in content), None)
            text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    except (UnicodeDecodeError, ValueError, TypeError, RecursionError):
        return ValueError("the label cannot be read: write the number or name of a class")
    if not text or "\n" in text:
        return ValueError("the label is empty or has several lines: write the number or name of a class")
    return text


def _read_at(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
