"""PNG files written bit by bit, of every colour type and depth, so that what is meant is known."""

import struct
import zlib
from pathlib import Path

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""How many numbers a pixel has, by colour type: grey, RGB, palette, grey with alpha, RGBA."""

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""The depths that the standard allows, by colour type."""


def write_png(path: Path, values: np.ndarray, colour_type: int, bits: int, palette: bytes = b"") -> None:
    """Write [H, W, C] numbers of so many bits, not filtered and not interlaced."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        lines = [
            np.packbits(np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].ravel()).tobytes()
            for row in rows
        ]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))]
    content = b"".join(_chunk(name, data) for name, data in [*parts, (b"IEND", b"")] if data or name == b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
