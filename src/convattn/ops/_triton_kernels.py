# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""Index arithmetic that the kernels share, on the tables of :class:`convattn.ops._triton.Tables`."""

import triton
import triton.language as tl


@triton.jit
def neighbours(tap, y, x, keep, taps, rows, columns, SY, SX):
    """The pixel at which outputs (y, x) find offset number ``tap``, and whether there is one."""
    at_y = tl.load(rows + y * SY + tl.load(taps + 2 * tap), mask=keep, other=-1)
    at_x = tl.load(columns + x * SX + tl.load(taps + 2 * tap + 1), mask=keep, other=-1)
    return at_y, at_x, keep & (at_y >= 0) & (at_x >= 0)


@triton.jit
def is_folded(row, column, y, x, keep, row_most, column_most):
    """Which of the pixels (y, x) have readers number ``row`` and ``column`` through any offset."""
    down = tl.load(row_most + y, mask=keep, other=0)
    across = tl.load(column_most + x, mask=keep, other=0)
    return keep & (row < down) & (column < across)


@triton.jit
def readers(tap, row, column, y, x, keep, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X):
    """The outputs number (row, column) that find pixels (y, x) through offset ``tap``, and whether there are any."""
    at_y = (tl.load(taps + 2 * tap) * H + y) * FOLDS_Y + row
    at_x = (tl.load(taps + 2 * tap + 1) * W + x) * FOLDS_X + column
    out_y = tl.load(row_readers + at_y, mask=keep, other=-1)
    out_x = tl.load(column_readers + at_x, mask=keep, other=-1)
    return out_y, out_x, keep & (out_y >= 0) & (out_x >= 0)


@triton.jit
def load_vectors(base, y, x, keep, stride_y, stride_x, C: tl.constexpr, CP: tl.constexpr):
    """The C channels of the pixels (y, x) ``[P]`` as float32 ``[P, CP]``; zeros where there is no pixel."""
    c = tl.arange(0, CP)
    mask = keep[:, None] & (c < C)[None, :]
    return tl.load(base + (y * stride_y + x * stride_x)[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_vectors(base, value, y, x, keep, stride_y, stride_x, C: tl.constexpr, CP: tl.constexpr):
    """The inverse of ``load_vectors``, in the dtype of ``base``."""
    c = tl.arange(0, CP)
    at = base + (y * stride_y + x * stride_x)[:, None] + c[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=keep[:, None] & (c < C)[None, :])


@triton.jit
def head_block(program, blocks, tiles, heads, H, W, PIXELS: tl.constexpr, HEADS: tl.constexpr):
    """Image, first head and pixels (y, x) of a program. Heads vary fastest: they share cache lines."""
    block = program % blocks
    tile = (program // blocks) % tiles
    image = (program // blocks // tiles).to(tl.int64)
    i = tile * PIXELS + tl.arange(0, PIXELS)
    return image, block * HEADS, i // W, i % W, i < H * W
