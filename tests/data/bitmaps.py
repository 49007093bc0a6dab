"""PNM, BMP, GIF and TGA files written number by number, so that what is meant is known."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.data.png import packed

Colours = Sequence[tuple[int, ...]]


def write_pnm(path: Path, kind: str, values: np.ndarray, most: int | None = None) -> None:
    """Write [H, W, C] numbers as PBM (P1, P4), PGM (P2, P5) or PPM (P3, P6); 1 to 3 are text, PBMs have no ``most``."""
    height, width = values.shape[:2]
    head = f"{kind}\n{width} {height}\n" + (f"{most}\n" if most is not None else "")
    if kind in ("P1", "P2", "P3"):
        data = " ".join(map(str, values.ravel().tolist())).encode()
    elif kind == "P4":
        data = b"".join(packed(row, 1) for row in values.reshape(height, -1))
    else:
        data = values.astype(">u2" if most is not None and most > 255 else "u1").tobytes()
    path.write_bytes(head.encode() + data + b"\n")


def write_bmp(path: Path, ids: np.ndarray, bits: int, palette: Colours) -> None:
    """Write [H, W] palette indices of 1, 4 or 8 bits, from the lowest row up."""
    height, width = ids.shape
    rows = [packed(row, bits) for row in ids[::-1]]
    data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    colours = b"".join(bytes([*colour[::-1], 0]) for colour in palette)
    start = 54 + len(colours)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(data), 0, 0, len(palette), 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + colours + data)


def write_gif(path: Path, frames: Sequence[np.ndarray], palette: Colours, clear: int | None = None) -> None:
    """Write frames of [H, W] indices of a palette of 128 colours; index ``clear`` is transparent.

    Nothing is compressed: every number is a code of 8 bits, and the table is cleared before it would grow to 9.
    """
    height, width = frames[0].shape
    colours = b"".join(bytes(colour) for colour in palette).ljust(3 * 128, b"\0")
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF6, 0, 0), colours]
    for frame in frames:
        flags, index = (0, 0) if clear is None else (1, clear)
        parts.append(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, flags, 5, index, 0))
        parts.append(struct.pack("<BHHHHBB", 0x2C, 0, 0, width, height, 0, 7))
        codes = b"".join(b"\x80" + bytes(frame.ravel()[at : at + 100].tolist()) for at in range(0, frame.size, 100))
        codes += b"\x81"
        blocks = [codes[at : at + 255] for at in range(0, len(codes), 255)]
        parts += [bytes([len(block)]) + block for block in blocks] + [b"\0"]
    path.write_bytes(b"".join(parts) + b"\x3b")


def write_tga(path: Path, kind: int, values: np.ndarray, palette: Colours = (), flags: int = 0x20) -> None:
    """Write [H, W, C] numbers of 8 bits: palette (kind 1), BGR or BGRA (2), grey (3).

    ``flags``: 0x20 from the top down, 0x10 from the right, and the number of bits that are alpha.
    """
    height, width, channels = values.shape
    table = struct.pack("<HHB", 0, len(palette), 24 if palette else 0)
    head = struct.pack("<BBB", 0, bool(palette), kind) + table
    head += struct.pack("<HHHHBB", 0, 0, width, height, 8 * channels, flags)
    path.write_bytes(head + b"".join(bytes(colour[::-1]) for colour in palette) + values.astype(np.uint8).tobytes())
