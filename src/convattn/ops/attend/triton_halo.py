# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""What the window kernels share: tiles and their halos, and how often a window's positions fall on a pixel.

``triton_window`` says what the counts are for.
"""

import triton
import triton.language as tl

from convattn.ops.attend.triton_offsets import LOG2E, directions, place

LEAST = tl.constexpr(-1.0e30)  # where a largest logit starts
NOWHERE = tl.constexpr(1 << 24)  # a coordinate that no window reaches, for what lies outside the map


@triton.jit
def log_count(centre, pixel, size, one, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """log2 of how many window positions around ``centre`` fall on ``pixel`` along one axis; -inf for none.

    In units of 1 / ``one``. The map is larger than RADIUS + 1, so that a position bounces off one border at most.
    """
    twice = (centre + pixel) < 0
    if REFLECT:
        last = size - 1
        twice = (pixel > 0) & (centre + pixel <= RADIUS)
        twice = twice | ((pixel < last) & (2 * last - centre - pixel <= RADIUS))
    return tl.where(tl.abs(centre - pixel) <= RADIUS, tl.where(twice, one, 0.0), float("-inf"))


@triton.jit
def sharpness(scale):
    """A scale of at least 0 in base 2, not quite 0, and its inverse."""
    sharp = scale * LOG2E
    sharp = tl.where(sharp < 1e-30, 1e-30, sharp)
    return sharp, 1.0 / sharp


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
def product(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` of ``[G, M, K]`` and ``[G, K, N]``.

    In a batch every warp has groups of its own. A large single group is no batch, so that warps share its rows.
    """
    if a.shape[0] == 1 and a.shape[1] > 16:
        flat = tl.reshape(acc, [acc.shape[1], acc.shape[2]])
        flat = tl.dot(
            tl.reshape(a, [a.shape[1], a.shape[2]]), tl.reshape(b, [b.shape[1], b.shape[2]]), flat,
            input_precision=PRECISION,
        )  # fmt: skip
        return tl.reshape(flat, acc.shape)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def product_across(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b.T`` of ``[G, M, K]`` and ``[G, N, K]``."""
    return product(a, tl.permute(b, (0, 2, 1)), acc, PRECISION)


@triton.jit
def halo(step, y_first, x_first, H, W, HALO: tl.constexpr, LW: tl.constexpr, S: tl.constexpr):
    """Rows and columns of the pixels of a step of every group's halo ``[G, S]``, and which of them there are."""
    s = step * S + tl.arange(0, S)
    y = y_first[:, None] + (s // LW)[None, :]
    x = x_first + (s % LW)[None, :] + y_first[:, None] * 0
    return y, x, (y < H) & (x < W) & (s < HALO)[None, :]


@triton.jit
def log_counts(cy, cx, y, x, H, W, one, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """The sum of :func:`log_count` over rows and columns."""
    return log_count(cy, y, H, one, RADIUS, REFLECT) + log_count(cx, x, W, one, RADIUS, REFLECT)


@triton.jit
def counts_of_keys(cy, cx, jy, jx, H, W, one, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """Of the queries ``[G, M]`` over the keys ``[G, S]``: ``[G, M, S]``.

    Rows and columns apart: what is a function of a key's row alone the compiler computes once a row.
    """
    jy, jx = tl.where(jy < H, jy, NOWHERE), tl.where(jx < W, jx, NOWHERE)
    return log_counts(cy[:, :, None], cx[:, :, None], jy[:, None, :], jx[:, None, :], H, W, one, RADIUS, REFLECT)


@triton.jit
def key_step(step, y_first, x_first, cy, cx, H, W, one, HALO: tl.constexpr, LW: tl.constexpr, S: tl.constexpr,
             RADIUS: tl.constexpr, REFLECT: tl.constexpr):  # fmt: skip
    """The keys of a step of every group's halo, as :func:`halo`, and the counts of the queries over them."""
    y, x, keep = halo(step, y_first, x_first, H, W, HALO, LW, S)
    return y, x, keep, counts_of_keys(cy, cx, y, x, H, W, one, RADIUS, REFLECT)


@triton.jit
def counts_of_queries(iy, ix, jy, jx, keep, H, W, one, STRIDE: tl.constexpr, RADIUS: tl.constexpr,
                      REFLECT: tl.constexpr):  # fmt: skip
    """Of the queries ``[G, S]`` over the keys ``[G, M]``: ``[G, M, S]``."""
    jy, iy, ix = tl.where(keep, jy, NOWHERE), iy * STRIDE, ix * STRIDE
    return log_counts(iy[:, None, :], ix[:, None, :], jy[:, :, None], jx[:, :, None], H, W, one, RADIUS, REFLECT)


@triton.jit
def load_walk(walk, step, y_first, S: tl.constexpr):
    """Where the keys of a step lie, as :func:`convattn.ops.attend.triton.walk` has it: ``[G, S, 16]``."""
    s = step * S + tl.arange(0, S)
    at = (s * 16)[None, :, None] + tl.arange(0, 16)[None, None, :] + (y_first * 0)[:, None, None]
    return tl.load(walk + at)


@triton.jit
def along_position(query, position, y_first, x_first, H, W, C: tl.constexpr, CP: tl.constexpr):
    """What the position takes from the products of queries ``[G, M, CP]`` with keys.

    Returns what it takes from all products of a query alike, ``[G, M]``, and, to be multiplied with the walk,
    ``[G, M, 16]``, the rest: each number in two parts, of which the dtype of the maps holds one.
    """
    step_y, step_x = directions(position, C, CP)
    wide = query.to(tl.float32)
    along_y, along_x = tl.sum(wide * step_y[None, None, :], 2), tl.sum(wide * step_x[None, None, :], 2)
    down, across = place(y_first, x_first, H, W)
    common = along_y * down[:, None] + along_x * across
    along_y, along_x = along_y * -(2.0 / tl.maximum(H - 1, 1)), along_x * -(2.0 / tl.maximum(W - 1, 1))
    f = tl.arange(0, 16)[None, None, :]
    exact = tl.where(f < 2, along_y[:, :, None], tl.where(f < 4, along_x[:, :, None], 0.0))
    large = exact.to(query.dtype)
    return common, tl.where(f % 2 == 0, large, (exact - large.to(tl.float32)).to(query.dtype))


@triton.jit
def of_position(moments, position, y_first, x_first, H, W, C: tl.constexpr, CP: tl.constexpr):
    """The sum of weights * positions of keys, ``[G, M, CP]``, from that of weights * the walk."""
    step_y, step_x = directions(position, C, CP)
    down, across = place(y_first, x_first, H, W)
    f = tl.arange(0, 16)[None, None, :]
    weights = tl.sum(tl.where(f == 4, moments, 0.0), 2)
    along_y = tl.sum(tl.where(f == 0, moments, 0.0), 2) * (2.0 / tl.maximum(H - 1, 1)) + weights * down[:, None]
    along_x = tl.sum(tl.where(f == 2, moments, 0.0), 2) * (2.0 / tl.maximum(W - 1, 1)) + weights * across
    return along_y[:, :, None] * step_y[None, None, :] + along_x[:, :, None] * step_x[None, None, :]


@triton.jit
def logits(query, key, counts, along, at, HAS_POSITION: tl.constexpr, PRECISION: tl.constexpr):
    """Of queries ``[G, M, CP]`` toward keys ``[G, S, CP]`` less their position, in units of :func:`sharpness`."""
    if HAS_POSITION:
        counts = product_across(along, at, counts, PRECISION)
    return product_across(query, key, counts, PRECISION)


@triton.jit
def beyond(cy, cx, common, H, W, RADIUS: tl.constexpr, REFLECT: tl.constexpr):
    """Where a running softmax starts: from the window positions beyond a zeros border, of logit 0 and value 0."""
    top = tl.full(cy.shape, LEAST, tl.float32)
    total = tl.zeros(cy.shape, tl.float32)
    if not REFLECT:
        side: tl.constexpr = 2 * RADIUS + 1
        outside = side * side - positions_inside(cy, H, RADIUS) * positions_inside(cx, W, RADIUS)
        top = tl.where(outside > 0, common, LEAST)
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
