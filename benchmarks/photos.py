"""Data sets of generated images, the same ones in every form: class folders, tar shards and a table."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import islice
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


def write(folder: Path, count: int, files: list[bytes], ending: str) -> dict[Form, Path]:
    """Write a data set of ``count`` images in every form; what a person gives as --data, by form."""
    rows = ["path,label"]
    for label in range(CLASSES):
        (folder / "photos" / f"class{label}").mkdir(parents=True)
    (folder / "shards").mkdir()
    images = _images(count, files)
    for place in range(SHARDS):
        last = count * (place + 1) // SHARDS
        with tarfile.open(folder / "shards" / f"train-{place:03}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
            for number, label, content in islice(images, last - count * place // SHARDS):
                name = f"photos/class{label}/{number:07}.{ending}"
                (folder / name).write_bytes(content)
                rows.append(f"{name},class{label}")
                _add(shard, f"{number:07}.{ending}", content)
                _add(shard, f"{number:07}.cls", str(label).encode())
    table = folder / "photos.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    return {"class folders": folder / "photos", "tar shards": folder / "shards", "CSV table": table}


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _images(count: int, files: list[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, class and file of every image; no class has images of its own, which is no matter here."""
    for number in range(count):
        yield number, number % CLASSES, files[number % len(files)]
