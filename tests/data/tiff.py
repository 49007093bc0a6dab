"""TIFF files written tag by tag, of every kind of grey and colour, so that what is meant is known."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tests.data.png import packed

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
"""The values of PhotometricInterpretation."""

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""The values of SampleFormat."""


@dataclass(frozen=True)
class Tiff:
    """How the numbers of a file are written, by the names that the standard gives its tags."""

    photometric: int = MIN_IS_BLACK
    sample_format: int = UNSIGNED
    order: Literal["<", ">"] = "<"
    fill_order: Literal[1, 2] = 1
    compression: Literal["none", "deflate"] = "none"
    extra: tuple[int, ...] = ()
    planes: Literal["together", "apart"] = "together"
    palette: Sequence[Sequence[int]] = ()
    orientation: int = 1
    pages: int = 1


def write_tiff(path: Path, values: np.ndarray, bits: int, kind: Tiff | None = None) -> None:
    """Write [H, W, C] numbers of so many bits each; further pages hold the same."""
    kind = kind or Tiff()
    planes = [values] if kind.planes == "together" else np.split(values, values.shape[-1], axis=-1)
    strips = [_strip(plane, bits, kind) for plane in planes]
    out = (b"II" if kind.order == "<" else b"MM") + struct.pack(kind.order + "HI", 42, 0)
    link = 4  # where the place of the next directory stands
    for _ in range(kind.pages):
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip
        out += bytes(len(out) % 2)
        out = out[:link] + struct.pack(kind.order + "I", len(out)) + out[link + 4 :]
        directory = _directory(_tags(values, bits, kind, offsets, [len(strip) for strip in strips]), kind, len(out))
        link = len(out) + directory[1]
        out += directory[0]
    path.write_bytes(out)


def _strip(values: np.ndarray, bits: int, kind: Tiff) -> bytes:
    height = values.shape[0]
    letter = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[kind.sample_format]
    if bits in (8, 16, 32, 64):
        data = values.astype(f"{kind.order}{letter}{bits // 8}").tobytes()
    else:
        data = b"".join(packed(row, bits) for row in values.reshape(height, -1))
    if kind.fill_order == 2:
        data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()
    return zlib.compress(data) if kind.compression == "deflate" else data


def _tags(
    values: np.ndarray, bits: int, kind: Tiff, offsets: list[int], lengths: list[int]
) -> dict[int, tuple[str, Sequence[int]]]:
    height, width, channels = values.shape
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [1 if kind.compression == "none" else 8]),
        262: ("H", [kind.photometric]),
        266: ("H", [kind.fill_order]),
        273: ("I", offsets),
        274: ("H", [kind.orientation]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", lengths),
        284: ("H", [1 if kind.planes == "together" else 2]),
        339: ("H", [kind.sample_format] * channels),
    }
    if kind.palette:  # all reds, all greens, all blues, of 16 bits
        tags[320] = ("H", [257 * color[channel] for channel in range(3) for color in kind.palette])
    if kind.extra:
        tags[338] = ("H", kind.extra)
    if kind.photometric == YCBCR:
        tags[530] = ("H", [1, 1])
    return dict(sorted(tags.items()))


def _directory(tags: dict[int, tuple[str, Sequence[int]]], kind: Tiff, start: int) -> tuple[bytes, int]:
    """Return a directory with its long values behind it, and where in it the place of the next one stands."""
    entries, behind = b"", b""
    end = start + 2 + 12 * len(tags) + 4
    for tag, (form, numbers) in tags.items():
        data = struct.pack(f"{kind.order}{len(numbers)}{form}", *numbers)
        if len(data) > 4:
            value = struct.pack(kind.order + "I", end + len(behind))
            behind += data
        else:
            value = data.ljust(4, b"\0")
        entries += struct.pack(kind.order + "HHI", tag, {"H": 3, "I": 4}[form], len(numbers)) + value
    return struct.pack(kind.order + "H", len(tags)) + entries + bytes(4) + behind, 2 + 12 * len(tags)
