"""What lies where in a tar shard: its samples, from one look at all of its headers."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from convattn.data.images import is_image_name
from convattn.data.remote import facts, is_url
from convattn.data.types import SkippedFile
from convattn.errors import UserError, first_line

LABELS = ("cls", "label", "json")
"""The endings of a sample's label: a number or a name, or JSON with "label"."""

LARGEST_LABEL = 100_000
BLOCK = 2**20
"""Of a remote shard, how much is read at a time to list it."""


class ShardSample(NamedTuple):
    """The image of a sample: its member's name, where its bytes begin, how many they are, and its label."""

    name: str
    offset: int
    size: int
    label: str


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard, and what was left out."""

    samples: list[ShardSample] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)


def index_of(shard: Path) -> ShardIndex:
    """Return the samples of a shard; of one at a URL they are kept, so that it is read once for them.

    Raises:
        UserError: The shard cannot be read.
    """
    if not is_url(shard):
        with _opened(shard) as file:
            return _index(shard, file, shard.stat().st_size)
    try:
        known = facts(shard)
    except Exception as error:  # every storage's package raises types of its own
        raise UserError(f"{shard}: cannot be read: {first_line(error)}; check the address and the network") from error
    text = json.dumps([str(shard), *sorted((key, str(value)) for key, value in known.items())])
    kept = shard_cache() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(kept.read_text(encoding="utf-8"))
        return ShardIndex(
            [ShardSample(*sample) for sample in stored["samples"]], [SkippedFile(**one) for one in stored["skipped"]]
        )
    with _opened(shard) as file:
        found = _index(shard, file, int(known["size"]))
    _keep(found, kept)
    return found


def shard_cache() -> Path:
    """Return the folder of the lists of remote shards: beside torch's downloads, so ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()).parent / "convattn" / "shards"


def _keep(index: ShardIndex, place: Path) -> None:
    """Write an index whole or not at all; without a place for it, it is read again next time."""
    unfinished = place.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(asdict(index)), encoding="utf-8")
        os.replace(unfinished, place)


def _opened(shard: Path) -> BinaryIO:
    if not is_url(shard):
        return shard.open("rb")
    return shard.open("rb", block_size=BLOCK, cache_type="readahead")  # type: ignore[call-overload]


def _index(shard: Path, file: BinaryIO, end: int) -> ShardIndex:
    """Return the samples of a shard, in the order of their names."""
    found = ShardIndex()
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, str | ValueError] = {}
    for member in _members(shard, file, end):
        base, _, ending = member.name.rpartition("/")[2].partition(".")
        key = f"{member.name[: len(member.name) - len(ending) - 1 - len(base)]}{base}"
        kind = images if is_image_name(member.name) else labels if ending.lower() in LABELS else None
        if kind is None or base.startswith((".", "_")) or not base:
            continue
        if key in kind:
            found.skipped.append(SkippedFile(member.name, f"the sample {key} has another, {kind[key].name}"))
            continue
        kind[key] = member
        if kind is labels:
            texts[key] = _label(file, member)
    for key in sorted(images.keys() | labels.keys()):
        image, label, text = images.get(key), labels.get(key), texts.get(key)
        if image is None or label is None:
            what = "image" if image is None else "label: a file of the same name with the ending .cls"
            name = (image or label or tarfile.TarInfo(key)).name
            found.skipped.append(SkippedFile(name, f"the sample has no {what}"))
        elif isinstance(text, str):
            found.samples.append(ShardSample(image.name, image.offset_data, image.size, text))
        else:
            found.skipped.append(SkippedFile(label.name, str(text)))
    return found


def _members(shard: Path, file: BinaryIO, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a shard, their content unread."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = member.offset_data + member.size
                if last > end:
                    raise UserError(
                        f"{shard}: is truncated: {member.name} ends at byte {last}, the file at {end}; write it again"
                    )
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise UserError(f"{shard}: no tar file, packed, or damaged: {error}; write it again, not packed") from error


def _label(file: BinaryIO, member: tarfile.TarInfo) -> str | ValueError:
    """Return the text of a label, or what is wrong with it."""
    if member.size > LARGEST_LABEL:
        return ValueError(f"the label has {member.size:,} bytes: write the number or name of a class")
    try:
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8").strip()
        if member.name.lower().endswith(".json"):
            content = json.loads(text)
            value = next((content[key] for key in ("label", "cls") if key in content), None)
            text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    except (UnicodeDecodeError, ValueError, TypeError, RecursionError):
        return ValueError("the label cannot be read: write the number or name of a class")
    if not text or "\n" in text:
        return ValueError("the label is empty or has several lines: write the number or name of a class")
    return text
