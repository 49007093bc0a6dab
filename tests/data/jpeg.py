"""JPEG files written block by block, each of one colour, in every colour space, so that what is meant is known."""

import struct
from pathlib import Path

import numpy as np

BLOCK = 8


def write_jpeg(path: Path, blocks: np.ndarray, adobe: int | None = None) -> None:
    """Write a block of 8×8 pixels for each of [H, W, C] numbers, as they are: nothing is converted.

    ``adobe`` is the colour transform that an Adobe marker says: 0 none, 1 YCbCr, 2 YCCK; None leaves the marker out.
    """
    height, width, channels = blocks.shape
    names = range(1, channels + 1)
    parts = [b"\xff\xd8"]
    if adobe is not None:
        parts.append(_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)))
    parts.append(_segment(0xDB, b"\0" + b"\1" * 64))
    frame = struct.pack(">BHHB", 8, height * BLOCK, width * BLOCK, channels)
    parts.append(_segment(0xC0, frame + b"".join(bytes([name, 0x11, 0]) for name in names)))
    # Twelve sizes of a difference, four bits each; of what follows it only "nothing more", one bit.
    parts.append(_segment(0xC4, bytes([0x00, 0, 0, 0, 12, *[0] * 12, *range(12)])))
    parts.append(_segment(0xC4, bytes([0x10, 1, *[0] * 15, 0])))
    parts.append(_segment(0xDA, bytes([channels]) + b"".join(bytes([name, 0]) for name in names) + b"\x00\x3f\x00"))
    parts += [_scan(blocks.reshape(-1, channels)), b"\xff\xd9"]
    path.write_bytes(b"".join(parts))


def _scan(blocks: np.ndarray) -> bytes:
    bits, last = "", np.zeros(blocks.shape[1], int)
    for block in (blocks.astype(int) - 128) * BLOCK:
        for difference in map(int, block - last):
            size = abs(difference).bit_length()
            number = difference if difference > 0 else difference + 2**size - 1
            bits += f"{size:04b}" + (f"{number:0{size}b}" if size else "") + "0"
        last = block
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
