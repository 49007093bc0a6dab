# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""The kernel of ``correlate``."""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import head_block, neighbours


@triton.jit(do_not_specialize=["heads", "blocks", "tiles", "HO", "WO", "TAPS", "SY", "SX"])
def correlate_kernel(
    q, k, out, taps, rows, columns,
    qb, qy, qx, kb, ky, kx,
    heads, blocks, tiles, HO, WO, TAPS, SY, SX,
    D: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """PIXELS outputs of HEADS heads: for every offset a sum over the head's D channels, CHANNELS at a time."""
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, HO, WO, PIXELS, HEADS)
    head = first + tl.arange(0, HEADS)
    c = tl.arange(0, CHANNELS)
    channel = (head[:, None] * D + c[None, :])[None, :, :]
    own = q + image * qb + (y * qy + x * qx)[:, None, None] + channel
    wanted = keep[:, None] & (head < heads)[None, :]
    at_out = (image * heads + head)[None, :] * TAPS * (HO * WO) + (y * WO + x)[:, None]
    if D <= CHANNELS:
        query = tl.load(own, mask=wanted[:, :, None] & (c < D)[None, None, :], other=0.0).to(tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)
        other = k + image * kb + (at_y * ky + at_x * kx)[:, None, None] + channel
        there = inside[:, None] & (head < heads)[None, :]
        if D <= CHANNELS:
            key = tl.load(other, mask=there[:, :, None] & (c < D)[None, None, :], other=0.0).to(tl.float32)
            total = tl.sum(query * key, 2)
        else:
            total = tl.zeros([PIXELS, HEADS], tl.float32)
            for start in range(0, D, CHANNELS):
                real = (start + c < D)[None, None, :]
                part = tl.load(own + start, mask=wanted[:, :, None] & real, other=0.0).to(tl.float32)
                key = tl.load(other + start, mask=there[:, :, None] & real, other=0.0).to(tl.float32)
                total += tl.sum(part * key, 2)
        tl.store(out + at_out, total.to(out.dtype.element_ty), mask=wanted)
        at_out += HO * WO
