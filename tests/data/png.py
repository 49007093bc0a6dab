"""PNG files written bit by bit, of every colour type and depth, so that what is meant is known."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""How many numbers a pixel has, by colour type: grey, RGB, palette, grey with alpha, RGBA."""

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""The depths that the standard allows, by colour type."""


Chunks = Sequence[tuple[bytes, bytes]]
"""Further parts of a file, by their names of four letters."""


def write_png(
    path: Path, values: np.ndarray, colour_type: int, bits: int, palette: bytes = b"", chunks: Chunks = ()
) -> None:
    """Write [H, W, C] numbers of so many bits, not filtered and not interlaced; ``chunks`` stand before the pixels."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    lines = [row.astype(">u2").tobytes() if bits == 16 else packed(row, bits) for row in rows]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        (b"PLTE", palette),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
    ]
    content = b"".join(_chunk(name, data) for name, data in [*parts, (b"IEND", b"")] if data or name == b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def packed(row: np.ndarray, bits: int) -> bytes:
    """Return a row of numbers of up to 16 bits one behind the other, the last byte filled up with zeros."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((row[:, None].astype(int) >> places & 1).astype(np.uint8).ravel()).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
