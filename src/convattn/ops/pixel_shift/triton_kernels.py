# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""The kernels of ``pixel_shift_attention``: forward, and the gradients without atomics.

A program takes PIXELS pixels and the channels of HEADS heads, each padded to CP, as one row of numbers a pixel, so
that a thread reads neighbouring channels at once. It walks over the offsets and keeps only its own sums: every
coefficient is made again from q and k in each kernel.
"""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import head_block, is_folded, neighbours, readers


@triton.jit
def _channels(first, heads, D: tl.constexpr, HEADS: tl.constexpr, CP: tl.constexpr):
    """The map's channel of every number of a row, and whether it has one."""
    c = tl.arange(0, HEADS * CP)
    if D == CP:  # said so that the compiler sees neighbours
        return first * D + c, c < (heads - first) * D
    return (first + c // CP) * D + c % CP, (c % CP < D) & (first + c // CP < heads)


@triton.jit
def _neighbours(tap, y, x, keep, taps, rows, columns, H, W, TOP, LEFT, SY, SX, ZEROS: tl.constexpr):
    """``neighbours``; beyond a border of zeros by arithmetic, which takes half the instructions of the tables."""
    if ZEROS:
        at_y = y * SY + (tl.load(taps + 2 * tap) - TOP)
        at_x = x * SX + (tl.load(taps + 2 * tap + 1) - LEFT)
        return at_y, at_x, keep & (at_y >= 0) & (at_y < H) & (at_x >= 0) & (at_x < W)
    return neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)


@triton.jit
def _readers(
    tap, row, column, y, x, keep, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X,
    HO, WO, TOP, LEFT, SY, SX, ZEROS: tl.constexpr,
):  # fmt: skip
    """``readers``; with a border of zeros by arithmetic."""
    if ZEROS:
        from_y = y - (tl.load(taps + 2 * tap) - TOP)
        from_x = x - (tl.load(taps + 2 * tap + 1) - LEFT)
        out_y = from_y // SY
        out_x = from_x // SX
        keep = keep & (from_y >= 0) & (out_y < HO) & (from_x >= 0) & (out_x < WO)
        return out_y, out_x, keep & (out_y * SY == from_y) & (out_x * SX == from_x)
    return readers(tap, row, column, y, x, keep, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X)


@triton.jit
def _load(base, rows, mask):
    x = tl.load(base + rows, mask=mask, other=0.0)
    if base.dtype.element_ty == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _sum_heads(x, HEADS: tl.constexpr, CP: tl.constexpr):
    """The sum over each head's channels: ``[P, HEADS * CP]`` -> ``[P, HEADS]``."""
    if CP == 1:
        return x
    return tl.sum(tl.reshape(x, (x.shape[0], HEADS, CP)), 2)


@triton.jit
def _to_channels(x, HEADS: tl.constexpr, CP: tl.constexpr):
    """A head's number for each of its channels: the adjoint of ``_sum_heads``."""
    if CP == 1:
        return x
    spread = tl.broadcast_to(x[:, :, None], (x.shape[0], HEADS, CP))
    return tl.reshape(spread, (x.shape[0], HEADS * CP))


@triton.jit
def _coefficient(
    query, key, bias, tap, head, heads, TAPS, HEADS: tl.constexpr, CP: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """``q . k + bias`` of every head, one of the two scaled: ``[P, HEADS]``."""
    found = _sum_heads(query * key, HEADS, CP)
    if HAS_BIAS:
        found += tl.load(bias + head * TAPS + tap, mask=head < heads, other=0.0).to(tl.float32)[None, :]
    return found


@triton.jit(do_not_specialize=["blocks", "tiles", "HO", "WO", "H", "W", "TOP", "LEFT", "TAPS"])
def forward_kernel(
    q, k, v, weight, bias, out, taps, rows, columns,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, ob, oy, ox,
    heads, blocks, tiles, HO, WO, H, W, TOP, LEFT, TAPS, SY, SX, scale,
    D: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr,
    HAS_VALUES: tl.constexpr, HAS_BIAS: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """PIXELS outputs of HEADS heads."""
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, HO, WO, PIXELS, HEADS)
    channel, real = _channels(first, heads, D, HEADS, CP)
    head = first + tl.arange(0, HEADS)
    wanted = keep[:, None] & real[None, :]
    query = _load(q + image * qb, (y * qy + x * qx)[:, None] + channel[None, :], wanted) * scale
    total = tl.zeros([PIXELS, HEADS * CP], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = _neighbours(tap, y, x, keep, taps, rows, columns, H, W, TOP, LEFT, SY, SX, ZEROS)
        there = inside[:, None] & real[None, :]
        key = _load(k + image * kb, (at_y * ky + at_x * kx)[:, None] + channel[None, :], there)
        factor = _load(weight + tap * heads * D, channel, real)[None, :]
        if HAS_VALUES:
            factor *= _load(v + image * vb, (at_y * vy + at_x * vx)[:, None] + channel[None, :], there)
        found = _coefficient(query, key, bias, tap, head, heads, TAPS, HEADS, CP, HAS_BIAS)
        total += _to_channels(found, HEADS, CP) * factor
    at = out + image * ob + (y * oy + x * ox)[:, None] + channel[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["blocks", "tiles", "HO", "WO", "H", "W", "TOP", "LEFT", "TAPS"])
def query_kernel(
    q, k, v, weight, bias, dout, dq, dweight, dbias, taps, rows, columns,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, blocks, tiles, HO, WO, H, W, TOP, LEFT, TAPS, SY, SX, scale,
    D: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr,
    HAS_VALUES: tl.constexpr, HAS_BIAS: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """The gradient of PIXELS queries of HEADS heads, and their part of the tables' gradients.

    ``dweight`` ``[parts, TAPS, channels]`` and ``dbias`` ``[parts, heads, TAPS]`` have a part for each tile of pixels.
    """
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, HO, WO, PIXELS, HEADS)
    channel, real = _channels(first, heads, D, HEADS, CP)
    head = first + tl.arange(0, HEADS)
    wanted = keep[:, None] & real[None, :]
    query = _load(q + image * qb, (y * qy + x * qx)[:, None] + channel[None, :], wanted) * scale
    grad = _load(dout + image * gb, (y * gy + x * gx)[:, None] + channel[None, :], wanted)
    part = (tl.program_id(0) // blocks).to(tl.int64) * TAPS
    total = tl.zeros([PIXELS, HEADS * CP], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = _neighbours(tap, y, x, keep, taps, rows, columns, H, W, TOP, LEFT, SY, SX, ZEROS)
        there = inside[:, None] & real[None, :]
        key = _load(k + image * kb, (at_y * ky + at_x * kx)[:, None] + channel[None, :], there)
        toward = grad
        if HAS_VALUES:
            toward *= _load(v + image * vb, (at_y * vy + at_x * vx)[:, None] + channel[None, :], there)
        found = _coefficient(query, key, bias, tap, head, heads, TAPS, HEADS, CP, HAS_BIAS)
        by_pixels = tl.sum(toward * _to_channels(found, HEADS, CP), 0)
        tl.store(dweight + (part + tap) * heads * D + channel, by_pixels, mask=real)
        factor = _load(weight + tap * heads * D, channel, real)[None, :]
        dfound = _sum_heads(toward * factor, HEADS, CP)
        if HAS_BIAS:
            tl.store(dbias + part * heads + head * TAPS + tap, tl.sum(dfound, 0), mask=head < heads)
        total += _to_channels(dfound, HEADS, CP) * key
    at = dq + image * ob + (y * oy + x * ox)[:, None] + channel[None, :]
    tl.store(at, (total * scale).to(dq.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["blocks", "tiles", "H", "W", "HO", "WO", "TOP", "LEFT", "TAPS"])
def key_kernel(
    q, k, v, weight, bias, dout, dk, dv, taps, row_readers, column_readers, row_most, column_most,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, blocks, tiles, H, W, HO, WO, TOP, LEFT, TAPS, SY, SX, FOLDS_Y, FOLDS_X, scale,
    D: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HEADS: tl.constexpr,
    HAS_VALUES: tl.constexpr, HAS_BIAS: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """The gradients of PIXELS keys and values of HEADS heads, from the outputs that read them; dk and dv lie alike."""
    image, first, y, x, keep = head_block(tl.program_id(0), blocks, tiles, heads, H, W, PIXELS, HEADS)
    channel, real = _channels(first, heads, D, HEADS, CP)
    head = first + tl.arange(0, HEADS)
    wanted = keep[:, None] & real[None, :]
    key = _load(k + image * kb, (y * ky + x * kx)[:, None] + channel[None, :], wanted) * scale
    dkey = tl.zeros([PIXELS, HEADS * CP], tl.float32)
    if HAS_VALUES:
        value = _load(v + image * vb, (y * vy + x * vx)[:, None] + channel[None, :], wanted)
        dvalue = tl.zeros([PIXELS, HEADS * CP], tl.float32)
    for fold in range(FOLDS_Y * FOLDS_X):
        row = fold // FOLDS_X
        column = fold % FOLDS_X
        folded = is_folded(row, column, y, x, keep, row_most, column_most)
        if tl.max(folded.to(tl.int32), 0) > 0:
            for tap in range(TAPS):
                out_y, out_x, reads = _readers(
                    tap, row, column, y, x, folded, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X,
                    HO, WO, TOP, LEFT, SY, SX, ZEROS,
                )  # fmt: skip
                there = reads[:, None] & real[None, :]
                query = _load(q + image * qb, (out_y * qy + out_x * qx)[:, None] + channel[None, :], there)
                toward = _load(dout + image * gb, (out_y * gy + out_x * gx)[:, None] + channel[None, :], there)
                toward *= _load(weight + tap * heads * D, channel, real)[None, :]
                if HAS_VALUES:
                    found = _coefficient(query, key, bias, tap, head, heads, TAPS, HEADS, CP, HAS_BIAS)
                    dvalue += _to_channels(tl.where(reads[:, None], found, 0.0), HEADS, CP) * toward
                    toward *= value
                dfound = tl.where(reads[:, None], _sum_heads(toward, HEADS, CP), 0.0)
                dkey += _to_channels(dfound, HEADS, CP) * query
    at = image * ob + (y * oy + x * ox)[:, None] + channel[None, :]
    tl.store(dk + at, (dkey * scale).to(dk.dtype.element_ty), mask=wanted)
    if HAS_VALUES:
        tl.store(dv + at, dvalue.to(dv.dtype.element_ty), mask=wanted)
