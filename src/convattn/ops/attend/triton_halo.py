# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""What the window kernels share: tiles and their halos, and how often a window's positions fall on a pixel.

``triton_window`` says what the counts are for.
"""

import triton
import triton.language as tl

from convattn.ops.attend.triton_offsets import FLOOR, directions, place

NOWHERE = tl.constexpr(1 << 24)  # a coordinate that no window reaches, for what lies outside the map


@triton.jit
def log_count(centre, pixel, size, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """log2 of how many window positions around ``centre`` fall on ``pixel`` along one axis; -inf for none.

    The map is larger than RADIUS + 1, so that a position bounces off one border at most.
    """
    twice = (centre + pixel) < 0
    if REFLECT:
        last = size - 1
        twice = (pixel > 0) & (centre + pixel <= RADIUS)
        twice = twice | ((pixel < last) & (2 * last - centre - pixel <= RADIUS))
    return tl.where(tl.abs(centre - pixel) <= RADIUS, tl.where(twice, 1.0, 0.0), float("-inf"))


@triton.jit
def positions_inside(centre, size, RADIUS: tl.constexpr):
    """How many of the window positions around ``centre`` fall inside the map."""
    return tl.minimum(centre + RADIUS, size - 1) - tl.maximum(centre - RADIUS, 0) + 1


@triton.jit
def load_tile(base, y, x, keep, stride_y, stride_x, C: tl.constexpr, CP: tl.constexpr):
    """The channels of the pixels (y, x) ``[G, pixels]`` as ``[G, pixels, CP]``."""
    c = tl.arange(0, CP)
    at = base + (y * stride_y + x * stride_x)[:, :, None] + c[None, None, :]
    return tl.load(at, mask=keep[:, :, None] & (c < C)[None, None, :], other=0.0)


@triton.jit
def store_tile(base, value, y, x, keep, stride_y, stride_x, C: tl.constexpr, CP: tl.constexpr):
    """The inverse of ``load_tile``, in the dtype of ``base``."""
    c = tl.arange(0, CP)
    at = base + (y * stride_y + x * stride_x)[:, :, None] + c[None, None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=keep[:, :, None] & (c < C)[None, None, :])


@triton.jit
def batched_dot(a, b, PRECISION: tl.constexpr):
    """``[G, M, CP] x [G, S, CP] -> [G, M, S]``."""
    return tl.dot(a, tl.permute(b, (0, 2, 1)), input_precision=PRECISION)


@triton.jit
def halo(step, y_first, x_first, H, W, HALO: tl.constexpr, LW: tl.constexpr, S: tl.constexpr):
    """Rows and columns of the pixels of a step of every group's halo ``[G, S]``, and which of them there are."""
    s = step * S + tl.arange(0, S)
    y = y_first[:, None] + (s // LW)[None, :]
    x = x_first + (s % LW)[None, :] + y_first[:, None] * 0
    return y, x, (y < H) & (x < W) & (s < HALO)[None, :]


@triton.jit
def log_counts(cy, cx, y, x, H, W, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """The sum of :func:`log_count` over rows and columns."""
    return log_count(cy, y, H, RADIUS, REFLECT) + log_count(cx, x, W, RADIUS, REFLECT)


@triton.jit
def counts_of_keys(cy, cx, jy, jx, keep, H, W, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """Of the queries ``[G, M]`` over the keys ``[G, S]``: ``[G, M, S]``."""
    jy = tl.where(keep, jy, NOWHERE)
    return log_counts(cy[:, :, None], cx[:, :, None], jy[:, None, :], jx[:, None, :], H, W, RADIUS, REFLECT)


@triton.jit
def key_step(step, y_first, x_first, cy, cx, H, W, HALO: tl.constexpr, LW: tl.constexpr, S: tl.constexpr,
             RADIUS: tl.constexpr, REFLECT: tl.constexpr):  # fmt: skip
    """The keys of a step of every group's halo, as :func:`halo`, and the counts of the queries over them."""
    y, x, keep = halo(step, y_first, x_first, H, W, HALO, LW, S)
    return y, x, keep, counts_of_keys(cy, cx, y, x, keep, H, W, RADIUS, REFLECT)


@triton.jit
def counts_of_queries(iy, ix, jy, jx, keep, H, W, STRIDE: tl.constexpr, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """Of the queries ``[G, S]`` over the keys ``[G, M]``: ``[G, M, S]``."""
    jy, iy, ix = tl.where(keep, jy, NOWHERE), iy * STRIDE, ix * STRIDE
    return log_counts(iy[:, None, :], ix[:, None, :], jy[:, :, None], jx[:, :, None], H, W, RADIUS, REFLECT)


@triton.jit
def along_position(query, position, C: tl.constexpr, CP: tl.constexpr):
    """The products of queries ``[G, M, CP]`` with the directions of the position, ``[G, M, 1]`` each."""
    along_y, along_x = directions(position, C, CP)
    wide = query.to(tl.float32)
    return (
        tl.sum(wide * along_y[None, None, :], 2)[:, :, None],
        tl.sum(wide * along_x[None, None, :], 2)[:, :, None],
    )


@triton.jit
def logits(query, key, counts, along_y, along_x, y, x, H, W, scale_log2e, HAS_POSITION: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Of queries ``[G, M, CP]`` toward keys ``[G, S, CP]`` of pixels (y, x), less their position, in base 2."""
    logit = batched_dot(query, key, PRECISION)
    if HAS_POSITION:
        down, across = place(y, x, H, W)
        logit -= along_y * down[:, None, :] + along_x * across[:, None, :]
    return logit * scale_log2e + counts


@triton.jit
def beyond(cy, cx, H, W, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """Where a running softmax starts: from the window positions beyond a zeros border, of logit 0 and value 0."""
    top = tl.full(cy.shape, FLOOR, tl.float32)
    total = tl.zeros(cy.shape, tl.float32)
    if not REFLECT:
        side: tl.constexpr = 2 * RADIUS + 1
        outside = side * side - positions_inside(cy, H, RADIUS) * positions_inside(cx, W, RADIUS)
        top = tl.where(outside > 0, 0.0, FLOOR)
        total = outside.to(tl.float32)
    return top, total


@triton.jit
def is_spoiled(spoiled, keep):
    """Whether a sum of 0 * results over the pixels that there are is NaN."""
    return tl.sum(tl.sum(tl.where(keep, spoiled, 0.0), 1), 0) != 0.0


@triton.jit
def gain_or_one(gain, HAS_GAIN: tl.constexpr):
    """What the gradients are multiplied by."""
    factor = 1.0
    if HAS_GAIN:
        factor = tl.load(gain).to(tl.float32)
    return factor


@triton.jit
def window_program(heads, tiles_x, tiles_y, HEADS: tl.constexpr):
    """Image, first head, tile row, tile column. Heads vary fastest: they share cache lines."""
    program = tl.program_id(0)
    shares = heads // HEADS
    share = program % shares
    program = program // shares
    tile_x = program % tiles_x
    program = program // tiles_x
    return (program // tiles_y).to(tl.int64), share * HEADS, program % tiles_y, tile_x


@triton.jit
def tile_pixels(tile_y, tile_x, G: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr):
    """First row of each group ``[G]``, rows and columns of its pixels ``[G, TH * TW]``."""
    g = tl.arange(0, G)
    t = tl.arange(0, TH * TW)
    first = (tile_y * G + g) * TH
    return first, first[:, None] + (t // TW)[None, :], tile_x * TW + (t % TW)[None, :] + g[:, None] * 0


@triton.jit
def query_tile(tile_y, tile_x, HO, WO, STRIDE: tl.constexpr, RADIUS: tl.constexpr, G: tl.constexpr, TH: tl.constexpr,
               TW: tl.constexpr):  # fmt: skip
    """Rows and columns of a tile of queries, which of them there are, their centres, where each group's halo begins."""
    first, y, x = tile_pixels(tile_y, tile_x, G, TH, TW)
    y_first = tl.maximum(first * STRIDE - RADIUS, 0)
    x_first = tl.maximum(tile_x * TW * STRIDE - RADIUS, 0)
    return y, x, (y < HO) & (x < WO), y * STRIDE, x * STRIDE, y_first, x_first


@triton.jit
def group_pixels(group, tile_y, tile_x, H, W, G: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr):
    """The pixels (y, x) of one group ``[TH * TW]``, and which of them there are."""
    t = tl.arange(0, TH * TW)
    y = (tile_y * G + group) * TH + t // TW
    x = tile_x * TW + t % TW
    return y, x, (y < H) & (x < W)
