# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""The kernel of ``scatter``."""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import head_block, is_folded, readers


@triton.jit(do_not_specialize=["heads", "blocks", "tiles", "H", "W", "HO", "WO", "TAPS", "FOLDS_Y", "FOLDS_X"])
def scatter_kernel(
    weights, u, out, taps, row_readers, column_readers, row_most, column_most,
    ub, uy, ux, ob, oy, ox,
    heads, blocks, tiles, H, W, HO, WO, TAPS, FOLDS_Y, FOLDS_X,
    D: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The adjoint of ``aggregate`` written as a gather, so that every sum has one order and needs no atomics.

    A border rule can fold several outputs onto one pixel through the same offset; few tiles have such pixels.
    """
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, H, W, PIXELS, HEADS)
    head = first + tl.arange(0, HEADS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = (head[:, None] * D + c[None, :])[None, :, :]
    real = (head < heads)[None, :, None] & (c < D)[None, None, :]
    at_head = (image * heads + head)[None, :] * TAPS * (HO * WO)
    total = tl.zeros([PIXELS, HEADS, CHANNELS], tl.float32)
    for fold in range(FOLDS_Y * FOLDS_X):
        row = fold // FOLDS_X
        column = fold % FOLDS_X
        there = is_folded(row, column, y, x, keep, row_most, column_most)
        if tl.max(there.to(tl.int32), 0) > 0:
            at_tap = at_head
            for tap in range(TAPS):
                out_y, out_x, reads = readers(
                    tap, row, column, y, x, there, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X
                )
                wanted = reads[:, None] & (head < heads)[None, :]
                at = weights + at_tap + (out_y * WO + out_x)[:, None]
                weight = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
                source = u + image * ub + (out_y * uy + out_x * ux)[:, None, None] + channel
                part = tl.load(source, mask=reads[:, None, None] & real, other=0.0).to(tl.float32)
                total += weight[:, :, None] * part
                at_tap += HO * WO
    at = out + image * ob + (y * oy + x * ox)[:, None, None] + channel
    tl.store(at, total.to(out.dtype.element_ty), mask=keep[:, None, None] & real)
