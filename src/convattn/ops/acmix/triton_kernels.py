# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""What ACmix computes beside the attention, each in one launch: on a GPU a launch costs more than few numbers."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["maps", "heads", "dim", "H", "W", "WO"])
def shift_kernel(
    weight, projection_bias, bias, out, maps, heads, dim, H, W, WO,
    SY: tl.constexpr, SX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    MAPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Some pixels of one row and some channels of what a bias of q, k and v adds through the convolution path.

    Only the taps inside the map meet it. Its weight is ``[maps, KH, KW, heads, dim]``, its output channels head by
    head within each of dim.
    """
    y = tl.program_id(0)
    x = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = c < heads * dim
    group, head = c // heads, c % heads
    t = tl.arange(0, MAPS)[:, None]
    there = (t < maps) & is_channel[None, :]
    added = tl.load(projection_bias + t * dim + group[None, :], mask=there, other=0.0).to(tl.float32)
    acc = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for down in tl.static_range(KH):
        row = y * SY + (down - KH // 2) * DY
        for across in tl.static_range(KW):
            column = x * SX + (across - KW // 2) * DX
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            at = (((t * KH + down) * KW + across) * heads + head[None, :]) * dim + group[None, :]
            tap = tl.sum(tl.load(weight + at, mask=there, other=0.0).to(tl.float32) * added, 0)
            acc += tl.where(inside, 1.0, 0.0)[:, None] * tap[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + c, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    keep = (x < WO)[:, None] & is_channel[None, :]
    tl.store(out + (y * WO + x)[:, None] * (heads * dim) + c[None, :], acc, mask=keep)


@triton.jit(do_not_specialize=["lines", "size", "chunk"])
def weighted_sums_kernel(
    x, weights, out, lines, size, chunk, C,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Some channels of ``weights^T x`` over a chunk of the pixels of all images, ``[ROWS, C]`` for every chunk.

    Args:
        x: ``[lines, C]``, the pixels of one image after another.
        weights: ``[size, ROWS]``, of every pixel of an image, in the dtype of ``x``.
        out: ``[chunks, ROWS, C]`` in float32.
        lines: pixels of all images.
        size: pixels of an image.
        chunk: pixels of a program.
        C: channels.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    last = min(lines, (part + 1) * chunk)
    acc = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(part * chunk, last, PIXELS):
        at = start + tl.arange(0, PIXELS)
        keep = at < last
        weight = tl.load(weights + (at % size)[:, None] * ROWS + row[None, :])
        there = keep[:, None] & (c < C)[None, :]
        value = tl.load(x + at.to(tl.int64)[:, None] * C + c[None, :], mask=there, other=0.0)
        acc = tl.dot(tl.trans(weight), value, acc, input_precision="ieee")
    tl.store(out + (part * ROWS + row)[:, None] * C + c[None, :], acc, mask=(c < C)[None, :])
