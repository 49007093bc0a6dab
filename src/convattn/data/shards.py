"""Tar shards as WebDataset writes them: the files of a sample share their name up to the first point.

The shards are not read as a stream: where each image lies is listed once, and the loaders read any of them in the
order that (seed, epoch) gives, so a run resumes inside an epoch as it does with files, and an epoch reads each image
once over all processes and workers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.files import in_threads
from convattn.data.folder import SPLIT_WORDS
from convattn.data.forms import ClassList
from convattn.data.numbering import class_names
from convattn.data.packed import PackedFile
from convattn.data.pair_layout import read_classes as named_classes
from convattn.data.remote import is_url, read_ranges
from convattn.data.shard_index import index_of
from convattn.data.types import Named, SkippedFile, Split
from convattn.errors import UserError

LAYOUT = """expected one of
  ROOT/train-000.tar, train-001.tar ... with ROOT/val-000.tar ...
  ROOT/train/*.tar with ROOT/val/*.tar
  ROOT/*.tar                           (a fixed part of each class is held out)
each sample is NAME.jpg with NAME.cls, the number of its class; classes.txt beside the shards names the classes"""


def is_here(path: Path) -> bool:
    """Tell whether a path is a tar file, or a folder of them."""
    return bool(_tars(path)) if path.is_dir() else path.suffix.lower() == ".tar"


@dataclass(frozen=True)
class TarPack:
    """The images of tar files; a name is that of the shard, from the folder on, with that of the member.

    Args:
        path: The folder of the shards.
        shards: The shards, each with a number that is its own on all disks.
        members: By name, the place in ``shards``, the offset and the size.
        ahead: What was fetched and not read yet.
    """

    path: Path
    shards: list[tuple[Path, int]] = field(hash=False, compare=False)
    members: dict[str, tuple[int, int, int]] = field(hash=False, compare=False)
    ahead: dict[str, bytes] = field(default_factory=dict, hash=False, compare=False)

    def place(self, name: str) -> tuple[int, int] | None:
        """Return where a member begins, made unique over the shards, and its size."""
        if name not in self.members:
            return None
        shard, offset, size = self.members[name]
        return (self.shards[shard][1] << 64) + offset, size

    def read(self, name: str) -> bytes:
        """Return a member's content."""
        if name in self.ahead:
            return self.ahead[name]
        number, offset, size = self.members[name]
        shard, _ = self.shards[number]
        if is_url(shard):
            return read_ranges([(shard, offset, size)])[0]
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def fetch(self, names: Sequence[str]) -> None:
        """Have the members at hand that are read next: those at a URL are asked for together.

        Raises:
            UserError: One cannot be read.
        """
        if is_url(self.path):
            wanted = {name: self.members[name] for name in names if self.members[name][2]}
            parts = read_ranges([(self.shards[number][0], offset, size) for number, offset, size in wanted.values()])
            self.ahead.clear()
            self.ahead.update(zip(wanted, parts, strict=True))

    def __truediv__(self, name: str) -> PackedFile:
        return PackedFile(self, name)


def read_classes(path: Path) -> ClassList:
    """Return the images of shards with a class each; samples that cannot be used are left out.

    Raises:
        UserError: A shard cannot be read, or there is no sample to train on.
    """
    if not path.exists():
        what = "nothing is there, or nothing answers" if is_url(path) else "no such file"
        raise UserError(f"{path}: {what}; name a tar file or a folder of them")
    folder = path if path.is_dir() else path.parent
    tars = _tars(path) if path.is_dir() else [_Tar("train", path.name, path)]
    pack = TarPack(folder, [(tar.path, _number(tar.path)) for tar in tars], {})
    skipped: list[SkippedFile] = []
    labels: dict[Split, list[Named]] = {}
    indices = in_threads(lambda tar: index_of(tar.path), tars)
    for place, tar in enumerate(tars):
        index = indices.pop(0)  # not kept: the names and places are copied
        skipped += [SkippedFile(f"{tar.name}/{one.path}", one.reason) for one in index.skipped]
        part = labels.setdefault(tar.split, [])
        for sample in index.samples:
            name = f"{tar.name}/{sample.name}"
            pack.members[name] = place, sample.offset, sample.size
            part.append((name, sample.label))
    classes, names = class_names((label for _, label in labels.get("train", ())), named_classes(folder), str(path))
    if not labels.get("train"):
        first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: found no image with a class to train on{first}; {LAYOUT}")
    parts = {
        split: sorted((file, names.get(label, label)) for file, label in part) for split, part in labels.items() if part
    }
    return ClassList(path, pack, "tar shards", classes, parts, skipped=skipped)


@dataclass(frozen=True)
class _Tar:
    """A shard: its split, its name from the folder on, and where it is."""

    split: Split
    name: str
    path: Path


def _number(shard: Path) -> int:
    """Return a number that is the shard's own, whatever its name on a disk."""
    if is_url(shard):
        return int.from_bytes(hashlib.sha256(str(shard).encode()).digest()[:8])
    return shard.stat().st_ino


def _tars(folder: Path) -> list[_Tar]:
    """Return the shards of a folder with their splits, which their names or folders say; else all train."""
    found = [(file, file.stem, file.name) for file in sorted(folder.glob("*.tar"), key=str)]
    found += [
        (file, entry.name, f"{entry.name}/{file.name}")
        for entry in sorted(folder.iterdir(), key=str)
        if entry.name.lower() in SPLIT_WORDS and entry.is_dir()
        for file in sorted(entry.glob("*.tar"), key=str)
    ]
    tars = []
    for file, said, name in found:
        words = re.split(r"[^a-z]+", said.lower())
        split: Split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")
        tars.append(_Tar(split, name, file))
    return tars
