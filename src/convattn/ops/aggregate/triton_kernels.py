# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""The kernel of ``aggregate``."""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import head_block, neighbours


@triton.jit(do_not_specialize=["heads", "blocks", "tiles", "HO", "WO", "TAPS", "SY", "SX"])
def aggregate_kernel(
    weights, v, out, taps, rows, columns,
    vb, vy, vx, ob, oy, ox,
    heads, blocks, tiles, HO, WO, TAPS, SY, SX,
    D: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """PIXELS outputs of HEADS heads, and of the head's D channels those of chunk ``program_id(1)``."""
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, HO, WO, PIXELS, HEADS)
    head = first + tl.arange(0, HEADS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = (head[:, None] * D + c[None, :])[None, :, :]
    real = (head < heads)[None, :, None] & (c < D)[None, None, :]
    wanted = keep[:, None] & (head < heads)[None, :]
    at_weight = (image * heads + head)[None, :] * TAPS * (HO * WO) + (y * WO + x)[:, None]
    total = tl.zeros([PIXELS, HEADS, CHANNELS], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)
        weight = tl.load(weights + at_weight, mask=wanted, other=0.0).to(tl.float32)
        at = v + image * vb + (at_y * vy + at_x * vx)[:, None, None] + channel
        value = tl.load(at, mask=inside[:, None, None] & real, other=0.0).to(tl.float32)
        total += weight[:, :, None] * value
        at_weight += HO * WO
    at = out + image * ob + (y * oy + x * ox)[:, None, None] + channel
    tl.store(at, total.to(out.dtype.element_ty), mask=keep[:, None, None] & real)
