# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""``attend`` over any neighbourhood, offset by offset: forward, and the gradients without atomics.

Each position of a window is one number, so whatever a value is stays in its windows; the window kernels, whose
products of matrices would spread 0 * NaN over a tile, come here where a result is not finite.

A window's weights are exp(logit - ``top``) / ``total``, and ``inner`` is the sum over them of
weight * (dout . value).
"""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import is_folded, load_vectors, neighbours, readers, store_vectors

FLOOR = tl.constexpr(-3.0e38)  # below every logit, and finite so that differences with it are numbers
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(y, x, H, W):
    """The coordinates of pixels, from -1 to 1; of a map of one pixel, -1."""
    return y * (2.0 / tl.maximum(H - 1, 1)) - 1.0, x * (2.0 / tl.maximum(W - 1, 1)) - 1.0


@triton.jit
def directions(position, C: tl.constexpr, CP: tl.constexpr):
    """What a step along y and along x adds to a position, ``[CP]`` each."""
    c = tl.arange(0, CP)
    along_x = tl.load(position + 2 * c, mask=c < C, other=0.0)
    return tl.load(position + 2 * c + 1, mask=c < C, other=0.0), along_x


@triton.jit
def less_position(key, position, y, x, inside, H, W, C: tl.constexpr, CP: tl.constexpr, HAS_POSITION: tl.constexpr):
    """The keys ``[P, CP]`` of pixels less their position."""
    if HAS_POSITION:
        along_y, along_x = directions(position, C, CP)
        down, across = place(y, x, H, W)
        moved = key - (down[:, None] * along_y[None, :] + across[:, None] * along_x[None, :])
        key = tl.where(inside[:, None], moved, key)
    return key


@triton.jit
def _shifted(key, tap, vectors, C: tl.constexpr, CP: tl.constexpr, HAS_VECTORS: tl.constexpr):
    """The keys plus the vector of their offset."""
    if HAS_VECTORS:
        c = tl.arange(0, CP)
        key += tl.load(vectors + tap * C + c, mask=c < C, other=0.0)[None, :]
    return key


@triton.jit
def _logit(query, key, tap, bias, scale, HAS_BIAS: tl.constexpr):
    logit = tl.sum(query * key, 1) * scale
    if HAS_BIAS:
        logit += tl.load(bias + tap)
    return logit


@triton.jit
def _exp(x):
    """exp of x <= 0. exp2 of the rounded x * log2(e) loses accuracy where x is large; of its parts it does not.

    ln(2) is in two parts, the first short enough for its product with an integer to be exact.
    """
    x = tl.where(x < -150.0, -150.0, x)
    whole = tl.floor(x * LOG2E + 0.5)
    rest = (x - whole * 0.693359375) - whole * -2.12194440e-4
    return tl.exp2(whole) * tl.exp2(rest * LOG2E)


@triton.jit
def _add(total, lost, shrink, part):
    """``total * shrink + part`` with what rounding took from the total so far (Kahan): K terms cost no precision."""
    total = total * shrink
    part = part - lost * shrink
    grown = total + part
    return grown, (grown - total) - part


@triton.jit
def forward_pixels(
    query, k, v, bias, vectors, position, y, x, keep, taps, rows, columns, TAPS, SY, SX, ky, kx, vy, vx, H, W, scale,
    C: tl.constexpr, CP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr, HAS_POSITION: tl.constexpr,
):  # fmt: skip
    """Attention of the outputs (y, x) ``[P]`` by a running softmax: ``[P, CP]``."""
    top = tl.full([query.shape[0]], FLOOR, tl.float32)
    total = tl.zeros([query.shape[0]], tl.float32)
    lost = tl.zeros([query.shape[0]], tl.float32)
    acc = tl.zeros([query.shape[0], CP], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)
        key = load_vectors(k, at_y, at_x, inside, ky, kx, C, CP)
        key = less_position(key, position, at_y, at_x, inside, H, W, C, CP, HAS_POSITION)
        key = _shifted(key, tap, vectors, C, CP, HAS_VECTORS)
        logit = _logit(query, key, tap, bias, scale, HAS_BIAS)
        new_top = tl.maximum(top, logit)
        shrink = _exp(top - new_top)
        weight = _exp(logit - new_top)
        total, lost = _add(total, lost, shrink, weight)
        value = load_vectors(v, at_y, at_x, inside, vy, vx, C, CP)
        acc = acc * shrink[:, None] + weight[:, None] * value
        top = new_top
    return acc / tl.where(keep, total, 1.0)[:, None]


@triton.jit
def query_pixels(
    query, grad, k, v, bias, vectors, position, dlogits, y, x, keep, taps, rows, columns, TAPS, SY, SX,
    ky, kx, vy, vx, H, W, plane, scale,
    C: tl.constexpr, CP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr, HAS_POSITION: tl.constexpr,
    KEEP_DLOGITS: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries (y, x) before scaling ``[P, CP]``, and ``top``, ``total`` and ``inner`` ``[P]``.

    Two walks: the first for the softmax's sums. ``dlogits`` points at the outputs' first offset, ``plane`` numbers
    before the next.
    """
    top = tl.full([query.shape[0]], FLOOR, tl.float32)
    total = tl.zeros([query.shape[0]], tl.float32)
    lost = tl.zeros([query.shape[0]], tl.float32)
    inner = tl.zeros([query.shape[0]], tl.float32)
    lost_inner = tl.zeros([query.shape[0]], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)
        key = load_vectors(k, at_y, at_x, inside, ky, kx, C, CP)
        key = less_position(key, position, at_y, at_x, inside, H, W, C, CP, HAS_POSITION)
        key = _shifted(key, tap, vectors, C, CP, HAS_VECTORS)
        logit = _logit(query, key, tap, bias, scale, HAS_BIAS)
        toward = tl.sum(grad * load_vectors(v, at_y, at_x, inside, vy, vx, C, CP), 1)
        new_top = tl.maximum(top, logit)
        shrink = _exp(top - new_top)
        weight = _exp(logit - new_top)
        total, lost = _add(total, lost, shrink, weight)
        inner, lost_inner = _add(inner, lost_inner, shrink, weight * toward)
        top = new_top
    total = tl.where(keep, total, 1.0)
    inner = inner / total
    share = 1.0 / total
    acc = tl.zeros([query.shape[0], CP], tl.float32)
    for tap in range(TAPS):
        at_y, at_x, inside = neighbours(tap, y, x, keep, taps, rows, columns, SY, SX)
        key = load_vectors(k, at_y, at_x, inside, ky, kx, C, CP)
        key = less_position(key, position, at_y, at_x, inside, H, W, C, CP, HAS_POSITION)
        key = _shifted(key, tap, vectors, C, CP, HAS_VECTORS)
        logit = _logit(query, key, tap, bias, scale, HAS_BIAS)
        toward = tl.sum(grad * load_vectors(v, at_y, at_x, inside, vy, vx, C, CP), 1)
        dlogit = _exp(logit - top) * share * (toward - inner)
        acc += dlogit[:, None] * key
        if KEEP_DLOGITS:
            tl.store(dlogits, dlogit, mask=keep)
            dlogits += plane
    return acc, top, total, inner


@triton.jit
def key_pixels(
    key, value, q, dout, top, total, inner, bias, vectors, y, x, keep,
    taps, row_readers, column_readers, row_most, column_most,
    TAPS, H, W, WO, FOLDS_Y, FOLDS_X, qy, qx, gy, gx, scale,
    C: tl.constexpr, CP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr,
):  # fmt: skip
    """The gradients of the keys (before scaling) and values of the pixels (y, x): ``[P, CP]`` each."""
    dkey = tl.zeros([key.shape[0], CP], tl.float32)
    dvalue = tl.zeros([key.shape[0], CP], tl.float32)
    for fold in range(FOLDS_Y * FOLDS_X):
        row = fold // FOLDS_X
        column = fold % FOLDS_X
        there = is_folded(row, column, y, x, keep, row_most, column_most)
        if tl.max(there.to(tl.int32), 0) > 0:
            for tap in range(TAPS):
                out_y, out_x, reads = readers(
                    tap, row, column, y, x, there, taps, row_readers, column_readers, H, W, FOLDS_Y, FOLDS_X
                )
                query = load_vectors(q, out_y, out_x, reads, qy, qx, C, CP)
                grad = load_vectors(dout, out_y, out_x, reads, gy, gx, C, CP)
                own = _shifted(key, tap, vectors, C, CP, HAS_VECTORS)
                logit = _logit(query, own, tap, bias, scale, HAS_BIAS)
                at = out_y * WO + out_x
                weight = _exp(logit - tl.load(top + at, mask=reads, other=0.0))
                weight = weight / tl.load(total + at, mask=reads, other=1.0)
                dlogit = weight * (tl.sum(grad * value, 1) - tl.load(inner + at, mask=reads, other=0.0))
                dvalue += tl.where(reads, weight, 0.0)[:, None] * grad
                dkey += tl.where(reads, dlogit, 0.0)[:, None] * query
    return dkey, dvalue


@triton.jit
def _pixels_of(heads, tiles, W, SIZE, PIXELS: tl.constexpr):
    """Image, head and pixels of a program; heads vary fastest."""
    program = tl.program_id(0)
    head = program % heads
    tile = (program // heads) % tiles
    image = (program // heads // tiles).to(tl.int64)
    i = tile * PIXELS + tl.arange(0, PIXELS)
    return image, head, i // W, i % W, i < SIZE


@triton.jit(do_not_specialize=["heads", "tiles", "HO", "WO", "TAPS", "SY", "SX"])
def forward_kernel(
    q, k, v, bias, vectors, out, taps, rows, columns,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, ob, oy, ox,
    heads, tiles, HO, WO, TAPS, SY, SX, scale,
    C: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr,
):  # fmt: skip
    """PIXELS outputs of one head."""
    image, head, y, x, keep = _pixels_of(heads, tiles, WO, HO * WO, PIXELS)
    query = load_vectors(q + image * qb + head * C, y, x, keep, qy, qx, C, CP)
    acc = forward_pixels(
        query, k + image * kb + head * C, v + image * vb + head * C, bias + head * TAPS, vectors + head * TAPS * C,
        q, y, x, keep, taps, rows, columns, TAPS, SY, SX, ky, kx, vy, vx, 1, 1, scale,
        C, CP, HAS_BIAS, HAS_VECTORS, False,
    )  # fmt: skip
    store_vectors(out + image * ob + head * C, acc, y, x, keep, oy, ox, C, CP)


@triton.jit(do_not_specialize=["heads", "tiles", "HO", "WO", "TAPS", "SY", "SX"])
def query_kernel(
    q, k, v, bias, vectors, dout, top, total, inner, dq, dlogits, taps, rows, columns,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, tiles, HO, WO, TAPS, SY, SX, scale,
    C: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr,
):  # fmt: skip
    """The gradient of PIXELS queries of one head; with tables to learn, of the logits too ``[B, N, K, Ho, Wo]``."""
    image, head, y, x, keep = _pixels_of(heads, tiles, WO, HO * WO, PIXELS)
    query = load_vectors(q + image * qb + head * C, y, x, keep, qy, qx, C, CP)
    grad = load_vectors(dout + image * gb + head * C, y, x, keep, gy, gx, C, CP)
    plane = HO * WO
    at = y * WO + x
    acc, own_top, own_total, own_inner = query_pixels(
        query, grad, k + image * kb + head * C, v + image * vb + head * C, bias + head * TAPS,
        vectors + head * TAPS * C, q, dlogits + (image * heads + head) * TAPS * plane + at,
        y, x, keep, taps, rows, columns, TAPS, SY, SX, ky, kx, vy, vx, 1, 1, plane, scale,
        C, CP, HAS_BIAS, HAS_VECTORS, False, HAS_BIAS or HAS_VECTORS,
    )  # fmt: skip
    at += (image * heads + head) * plane
    tl.store(top + at, own_top, mask=keep)
    tl.store(total + at, own_total, mask=keep)
    tl.store(inner + at, own_inner, mask=keep)
    store_vectors(dq + image * ob + head * C, acc * scale, y, x, keep, oy, ox, C, CP)


@triton.jit(do_not_specialize=["heads", "tiles", "HO", "WO", "TAPS", "H", "W", "FOLDS_Y", "FOLDS_X"])
def key_kernel(
    q, k, v, bias, vectors, dout, top, total, inner, dk, dv, taps, row_readers, column_readers, row_most, column_most,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, tiles, H, W, HO, WO, TAPS, FOLDS_Y, FOLDS_X, scale,
    C: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VECTORS: tl.constexpr,
):  # fmt: skip
    """The gradients of PIXELS keys and values of one head; dk and dv have the same strides."""
    image, head, y, x, keep = _pixels_of(heads, tiles, W, H * W, PIXELS)
    key = load_vectors(k + image * kb + head * C, y, x, keep, ky, kx, C, CP)
    value = load_vectors(v + image * vb + head * C, y, x, keep, vy, vx, C, CP)
    plane = (image * heads + head) * HO * WO
    dkey, dvalue = key_pixels(
        key, value, q + image * qb + head * C, dout + image * gb + head * C, top + plane, total + plane,
        inner + plane,
        bias + head * TAPS, vectors + head * TAPS * C, y, x, keep,
        taps, row_readers, column_readers, row_most, column_most, TAPS, H, W, WO, FOLDS_Y, FOLDS_X,
        qy, qx, gy, gx, scale, C, CP, HAS_BIAS, HAS_VECTORS,
    )  # fmt: skip
    store_vectors(dk + image * ob + head * C, dkey * scale, y, x, keep, oy, ox, C, CP)
    store_vectors(dv + image * ob + head * C, dvalue, y, x, keep, oy, ox, C, CP)
