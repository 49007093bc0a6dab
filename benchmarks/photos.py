"""Data sets of generated images, the same ones in every form: class folders, tar shards and a table."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

Form: TypeAlias = Literal["class folders", "tar shards", "CSV table"]

CLASSES = 10
CONTENTS = 50
"""How many images are drawn; the others are copies of their files."""
SHARDS = 8


def draw(size: int, format: Literal["JPEG", "PNG"]) -> list[bytes]:
    """Draw images as files: coarse shapes with grain, so that a JPEG of 256x256 has about as many bytes as a photo's.

    Example:
        >>> [len(draw(8, "PNG")), draw(8, "PNG") == draw(8, "PNG")]
        [50, True]
    """
    numbers = np.random.default_rng(0)
    found = []
    for _ in range(CONTENTS):
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize((size, size))
        grain = numbers.normal(0, 8, (size, size, 3))
        pixels = np.clip(np.asarray(coarse, np.float32) + grain, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format, quality=90)
        found.append(stream.getvalue())
    return found


def write(folder: Path, form: Form, count: int, files: list[bytes], ending: str) -> Path:
    """Write a data set of ``count`` images; what a person gives as --data."""
    if form == "tar shards":
        return _write_shards(folder, count, files, ending)
    rows = ["path,label"]
    for label in range(CLASSES):
        (folder / "photos" / f"class{label}").mkdir(parents=True)
    for number, label, content in _images(count, files):
        name = f"photos/class{label}/{number:07}.{ending}"
        (folder / name).write_bytes(content)
        rows.append(f"{name},class{label}")
    if form == "class folders":
        return folder / "photos"
    (folder / "photos.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder / "photos.csv"


def _write_shards(folder: Path, count: int, files: list[bytes], ending: str) -> Path:
    folder.mkdir(parents=True)
    images = list(_images(count, files))
    for place in range(SHARDS):
        with tarfile.open(folder / f"train-{place:03}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for number, label, content in images[count * place // SHARDS : count * (place + 1) // SHARDS]:
                for name, part in ((ending, content), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:07}.{name}")
                    member.size = len(part)
                    shard.addfile(member, io.BytesIO(part))
    return folder


def _images(count: int, files: list[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, class and file of every image; no class has images of its own, which is no matter here."""
    for number in range(count):
        yield number, number % CLASSES, files[number % len(files)]
