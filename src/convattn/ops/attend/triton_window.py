# mypy: ignore-errors
# Triton compiles these functions from their source; their parameters are pointers and numbers of the device.
"""``attend`` over an odd square window by products of matrices on tiles: forward, and the gradients without atomics.

A reflected border makes several positions of a window fall on one pixel, but it never takes a position further from
the window's centre than it was. So a window touches only pixels inside its own clipped square, and the softmax over
its positions equals a softmax over those pixels, each counted as often as it is met: log2 of the count joins the
logit, -inf where it is 0. The count is a product of one for rows and one for columns. Hence no kernel pads or gathers
by index: each loads a tile and its clipped halo, and the gradient of a key gathers from the queries whose square
holds it, with the same count.

A program has G groups of TH x TW pixels, one above the other and a warp each, and goes through HEADS heads. Where a
sum is not finite it computes its pixels again offset by offset: in a product of matrices 0 * NaN would leave its
window. Terms as in ``triton_offsets``, but logits are in base 2 until ``top`` is stored.
"""

import triton
import triton.language as tl

from convattn.ops._triton_kernels import load_vectors, store_vectors
from convattn.ops.attend.triton_halo import (
    along_position,
    beyond,
    counts_of_queries,
    gain_or_one,
    group_pixels,
    halo,
    is_spoiled,
    key_step,
    load_tile,
    load_walk,
    logits,
    of_position,
    product,
    product_across,
    query_tile,
    sharpness,
    store_tile,
    tile_pixels,
    window_program,
)
from convattn.ops.attend.triton_offsets import (
    LOG2E,
    directions,
    forward_pixels,
    key_pixels,
    less_position,
    place,
    query_pixels,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _mixed(acc, head, image, y, x, keep, gain, other, shift, gc, pb, py, px, sy, sx, C: tl.constexpr,
           CP: tl.constexpr, HAS_SHIFT: tl.constexpr, RELU: tl.constexpr):  # fmt: skip
    """``act(gain * acc + other + shift)`` of the pixels ``[G, M]``; ``shift`` has no images."""
    c = tl.arange(0, CP)
    acc *= tl.load(gain + (head * C + c) * gc, mask=c < C, other=0.0).to(tl.float32)[None, None, :]
    acc += load_tile(other + image * pb + head * C, y, x, keep, py, px, C, CP).to(tl.float32)
    if HAS_SHIFT:
        acc += load_tile(shift + head * C, y, x, keep, sy, sx, C, CP).to(tl.float32)
    if RELU:
        acc = tl.where(acc < 0.0, 0.0, acc)
    return acc


SIZES = ["heads", "H", "W", "HO", "WO", "tiles_y", "tiles_x", "FOLDS_Y", "FOLDS_X"]


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, out, taps, rows, columns, position, walk, gain, other, shift,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, ob, oy, ox, gc, pb, py, px, sy, sx,
    heads, H, W, HO, WO, tiles_y, tiles_x, scale,
    HAS_POSITION: tl.constexpr, MIXED: tl.constexpr, HAS_SHIFT: tl.constexpr, RELU: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, RADIUS: tl.constexpr, STRIDE: tl.constexpr, REFLECT: tl.constexpr,
    HEADS: tl.constexpr, G: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, HALO: tl.constexpr, LW: tl.constexpr,
    S: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Groups of queries walk over their halo of keys, S pixels at a time.

    ``MIXED``: what is stored is ``act(gain * attention + other + shift)``, ACmix's other path in ``other``.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    sharp, one = sharpness(scale)
    image, first_head, tile_y, tile_x = window_program(heads, tiles_x, tiles_y, HEADS)
    iy, ix, is_query, cy, cx, y_first, x_first = query_tile(tile_y, tile_x, HO, WO, STRIDE, RADIUS, G, TH, TW)
    jy, jx, keep, counts = key_step(0, y_first, x_first, cy, cx, H, W, one, HALO, LW, S, RADIUS, REFLECT)
    at = load_walk(walk, 0, y_first, S) if HAS_POSITION else q
    spoiled = tl.zeros([G, TH * TW], tl.float32)
    for head in range(first_head, first_head + HEADS):
        query = load_tile(q + image * qb + head * C, iy, ix, is_query, qy, qx, C, CP)
        common, along = 0.0, query
        if HAS_POSITION:
            common, along = along_position(query, position, y_first, x_first, H, W, C, CP)
        top, total = beyond(cy, cx, common, H, W, RADIUS, REFLECT)
        acc = tl.zeros([G, TH * TW, CP], tl.float32)
        for step in range(STEPS):
            if STEPS > 1:
                jy, jx, keep, counts = key_step(step, y_first, x_first, cy, cx, H, W, one, HALO, LW, S, RADIUS, REFLECT)
                if HAS_POSITION:
                    at = load_walk(walk, step, y_first, S)
            key = load_tile(k + image * kb + head * C, jy, jx, keep, ky, kx, C, CP)
            value = load_tile(v + image * vb + head * C, jy, jx, keep, vy, vx, C, CP)
            logit = logits(query, key, counts, along, at, HAS_POSITION, PRECISION)
            new_top = tl.maximum(top, tl.max(logit, 2))
            weight = tl.exp2(logit * sharp - (new_top * sharp)[:, :, None])
            if STEPS > 1:
                shrink = tl.exp2((top - new_top) * sharp)
                total = total * shrink
                acc = acc * shrink[:, :, None]
            elif not REFLECT:
                total = total * tl.exp2((top - new_top) * sharp)
            total += tl.sum(weight, 2)
            acc = product(weight.to(value.dtype), value, acc, PRECISION)
            top = new_top
        acc *= (1.0 / tl.where(is_query, total, 1.0))[:, :, None]
        spoiled += tl.sum(acc * 0.0, 2)
        if MIXED:
            acc = _mixed(acc, head, image, iy, ix, is_query, gain, other, shift, gc, pb, py, px, sy, sx,
                         C, CP, HAS_SHIFT, RELU)  # fmt: skip
        store_tile(out + image * ob + head * C, acc, iy, ix, is_query, oy, ox, C, CP)
    if is_spoiled(spoiled, is_query):
        tl.debug_barrier()
        for number in range(HEADS * G):
            head = first_head + number // G
            y, x, there = group_pixels(number % G, tile_y, tile_x, HO, WO, G, TH, TW)
            own = load_vectors(q + image * qb + head * C, y, x, there, qy, qx, C, CP)
            exact = forward_pixels(
                own, k + image * kb + head * C, v + image * vb + head * C, q, q, position, y, x, there, taps, rows,
                columns, SIDE * SIDE, STRIDE, STRIDE, ky, kx, vy, vx, H, W, scale, C, CP, False, False, HAS_POSITION,
            )  # fmt: skip
            if MIXED:
                mixed = _mixed(exact[None, :, :], head, image, y[None, :], x[None, :], there[None, :], gain, other,
                               shift, gc, pb, py, px, sy, sx, C, CP, HAS_SHIFT, RELU)  # fmt: skip
                exact = tl.reshape(mixed, exact.shape)
            store_vectors(out + image * ob + head * C, exact, y, x, there, oy, ox, C, CP)


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    q, k, v, dout, top, total, inner, dq, taps, rows, columns, position, walk, gain,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, H, W, HO, WO, tiles_y, tiles_x, scale,
    HAS_POSITION: tl.constexpr, HAS_GAIN: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, RADIUS: tl.constexpr, STRIDE: tl.constexpr, REFLECT: tl.constexpr,
    HEADS: tl.constexpr, G: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, HALO: tl.constexpr, LW: tl.constexpr,
    S: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries on the forward's tiles, and the softmax's sums, which the key kernel reads.

    ``HAS_GAIN``: of ``gain * attention``; ``inner`` is of the attention itself.

    A halo that fits one step is walked once, a longer one twice: first for the sums.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    factor = gain_or_one(gain, HAS_GAIN)
    sharp, one = sharpness(scale)
    image, first_head, tile_y, tile_x = window_program(heads, tiles_x, tiles_y, HEADS)
    iy, ix, is_query, cy, cx, y_first, x_first = query_tile(tile_y, tile_x, HO, WO, STRIDE, RADIUS, G, TH, TW)
    jy, jx, keep, counts = key_step(0, y_first, x_first, cy, cx, H, W, one, HALO, LW, S, RADIUS, REFLECT)
    at = load_walk(walk, 0, y_first, S) if HAS_POSITION else q
    spoiled = tl.zeros([G, TH * TW], tl.float32)
    zeros = tl.zeros([G, TH * TW, S], tl.float32)
    for head in range(first_head, first_head + HEADS):
        query = load_tile(q + image * qb + head * C, iy, ix, is_query, qy, qx, C, CP)
        grad = load_tile(dout + image * gb + head * C, iy, ix, is_query, gy, gx, C, CP)
        common, along = 0.0, query
        if HAS_POSITION:
            common, along = along_position(query, position, y_first, x_first, H, W, C, CP)
        own_top, own_total = beyond(cy, cx, common, H, W, RADIUS, REFLECT)
        own_inner = tl.zeros([G, TH * TW], tl.float32)
        if STEPS > 1:
            for step in range(STEPS):
                jy, jx, keep, counts = key_step(step, y_first, x_first, cy, cx, H, W, one, HALO, LW, S, RADIUS, REFLECT)
                if HAS_POSITION:
                    at = load_walk(walk, step, y_first, S)
                key = load_tile(k + image * kb + head * C, jy, jx, keep, ky, kx, C, CP)
                value = load_tile(v + image * vb + head * C, jy, jx, keep, vy, vx, C, CP)
                logit = logits(query, key, counts, along, at, HAS_POSITION, PRECISION)
                new_top = tl.maximum(own_top, tl.max(logit, 2))
                shrink = tl.exp2((own_top - new_top) * sharp)
                weight = tl.exp2(logit * sharp - (new_top * sharp)[:, :, None])
                own_total = own_total * shrink + tl.sum(weight, 2)
                own_inner = own_inner * shrink + tl.sum(weight * product_across(grad, value, zeros, PRECISION), 2)
                own_top = new_top
            own_total = tl.where(is_query, own_total, 1.0)
            own_inner = own_inner / own_total
            norm = own_top * sharp + tl.log2(own_total)
        acc = tl.zeros([G, TH * TW, CP], tl.float32)
        moments = tl.zeros([G, TH * TW, 16], tl.float32)
        for step in range(STEPS):
            if STEPS > 1:
                jy, jx, keep, counts = key_step(step, y_first, x_first, cy, cx, H, W, one, HALO, LW, S, RADIUS, REFLECT)
                if HAS_POSITION:
                    at = load_walk(walk, step, y_first, S)
            key = load_tile(k + image * kb + head * C, jy, jx, keep, ky, kx, C, CP)
            value = load_tile(v + image * vb + head * C, jy, jx, keep, vy, vx, C, CP)
            logit = logits(query, key, counts, along, at, HAS_POSITION, PRECISION)
            toward = product_across(grad, value, zeros, PRECISION)
            if STEPS == 1:
                new_top = tl.maximum(own_top, tl.max(logit, 2))
                weight = tl.exp2(logit * sharp - (new_top * sharp)[:, :, None])
                if not REFLECT:
                    own_total = own_total * tl.exp2((own_top - new_top) * sharp)
                own_total = tl.where(is_query, own_total + tl.sum(weight, 2), 1.0)
                own_inner = tl.sum(weight * toward, 2) / own_total
                own_top = new_top
            else:
                weight = tl.exp2(logit * sharp - norm[:, :, None])
            dlogit = (weight * (toward - own_inner[:, :, None])).to(key.dtype)
            acc = product(dlogit, key, acc, PRECISION)
            if HAS_POSITION:
                moments = product(dlogit, at, moments, PRECISION)
        if HAS_POSITION:
            acc -= of_position(moments, position, y_first, x_first, H, W, C, CP)
        if STEPS == 1:
            acc *= (1.0 / own_total)[:, :, None]
        place_of = ((image * heads + head) * HO + iy) * WO + ix
        tl.store(top + place_of, (own_top - common) * sharp * LN2, mask=is_query)
        tl.store(total + place_of, own_total, mask=is_query)
        tl.store(inner + place_of, own_inner, mask=is_query)
        spoiled += tl.sum(acc * 0.0, 2)
        store_tile(dq + image * ob + head * C, acc * (scale * factor), iy, ix, is_query, oy, ox, C, CP)
    if is_spoiled(spoiled, is_query):
        tl.debug_barrier()
        for number in range(HEADS * G):
            head = first_head + number // G
            y, x, there = group_pixels(number % G, tile_y, tile_x, HO, WO, G, TH, TW)
            own = load_vectors(q + image * qb + head * C, y, x, there, qy, qx, C, CP)
            own_grad = load_vectors(dout + image * gb + head * C, y, x, there, gy, gx, C, CP)
            exact, exact_top, exact_total, exact_inner = query_pixels(
                own, own_grad, k + image * kb + head * C, v + image * vb + head * C, q, q, position, inner, y, x, there,
                taps, rows, columns, SIDE * SIDE, STRIDE, STRIDE, ky, kx, vy, vx, H, W, 0, scale,
                C, CP, False, False, HAS_POSITION, False,
            )  # fmt: skip
            at_pixel = ((image * heads + head) * HO + y) * WO + x
            tl.store(top + at_pixel, exact_top, mask=there)
            tl.store(total + at_pixel, exact_total, mask=there)
            tl.store(inner + at_pixel, exact_inner, mask=there)
            store_vectors(dq + image * ob + head * C, exact * (scale * factor), y, x, there, oy, ox, C, CP)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    q, k, v, dout, top, total, inner, dk, dv, taps, row_readers, column_readers, row_most, column_most,
    position, gain,
    qb, qy, qx, kb, ky, kx, vb, vy, vx, gb, gy, gx, ob, oy, ox,
    heads, H, W, HO, WO, tiles_y, tiles_x, FOLDS_Y, FOLDS_X, scale,
    HAS_POSITION: tl.constexpr, HAS_GAIN: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, RADIUS: tl.constexpr, STRIDE: tl.constexpr, REFLECT: tl.constexpr,
    HEADS: tl.constexpr, G: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, HALO: tl.constexpr, LW: tl.constexpr,
    S: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values: groups of pixels walk over the queries whose windows can hold them.

    dk and dv have the same strides.
    """
    SIDE: tl.constexpr = 2 * RADIUS + 1
    factor = gain_or_one(gain, HAS_GAIN)
    sharp, one = sharpness(scale)
    image, first_head, tile_y, tile_x = window_program(heads, tiles_x, tiles_y, HEADS)
    first, jy, jx = tile_pixels(tile_y, tile_x, G, TH, TW)
    is_key = (jy < H) & (jx < W)
    # The first query whose window reaches the tile: ceil((pixel - RADIUS) / STRIDE), of a numerator kept positive.
    y_first = tl.maximum((first - RADIUS + STRIDE - 1 + RADIUS * STRIDE) // STRIDE - RADIUS, 0)
    x_first = tl.maximum((tile_x * TW - RADIUS + STRIDE - 1 + RADIUS * STRIDE) // STRIDE - RADIUS, 0)
    iy, ix, keep = halo(0, y_first, x_first, HO, WO, HALO, LW, S)
    counts = counts_of_queries(iy, ix, jy, jx, is_key, H, W, one, STRIDE, RADIUS, REFLECT)
    spoiled = tl.zeros([G, TH * TW], tl.float32)
    zeros = tl.zeros([G, TH * TW, S], tl.float32)
    for head in range(first_head, first_head + HEADS):
        key = load_tile(k + image * kb + head * C, jy, jx, is_key, ky, kx, C, CP)
        if HAS_POSITION:
            step_y, step_x = directions(position, C, CP)
            down, across = place(jy, jx, H, W)
            moved = down[:, :, None] * step_y[None, None, :] + across[:, :, None] * step_x[None, None, :]
            key = (key.to(tl.float32) - moved).to(key.dtype)
        value = load_tile(v + image * vb + head * C, jy, jx, is_key, vy, vx, C, CP)
        plane = (image * heads + head) * HO * WO
        dkey = tl.zeros([G, TH * TW, CP], tl.float32)
        dvalue = tl.zeros([G, TH * TW, CP], tl.float32)
        for step in range(STEPS):
            if STEPS > 1:
                iy, ix, keep = halo(step, y_first, x_first, HO, WO, HALO, LW, S)
                counts = counts_of_queries(iy, ix, jy, jx, is_key, H, W, one, STRIDE, RADIUS, REFLECT)
            query = load_tile(q + image * qb + head * C, iy, ix, keep, qy, qx, C, CP)
            grad = load_tile(dout + image * gb + head * C, iy, ix, keep, gy, gx, C, CP)
            at = plane + iy * WO + ix
            norm = tl.load(top + at, mask=keep, other=float("inf"))  # no query: weight 0
            norm = norm * LOG2E + tl.log2(tl.load(total + at, mask=keep, other=1.0))
            own_inner = tl.load(inner + at, mask=keep, other=0.0)
            logit = product_across(key, query, counts, PRECISION)
            weight = tl.exp2(logit * sharp - norm[:, None, :])
            dvalue = product(weight.to(grad.dtype), grad, dvalue, PRECISION)
            dlogit = weight * (product_across(value, grad, zeros, PRECISION) - own_inner[:, None, :])
            dkey = product(dlogit.to(query.dtype), query, dkey, PRECISION)
        spoiled += tl.sum(dkey * 0.0, 2) + tl.sum(dvalue * 0.0, 2)
        store_tile(dk + image * ob + head * C, dkey * (scale * factor), jy, jx, is_key, oy, ox, C, CP)
        store_tile(dv + image * ob + head * C, dvalue * factor, jy, jx, is_key, oy, ox, C, CP)
    if is_spoiled(spoiled, is_key):
        tl.debug_barrier()
        for number in range(HEADS * G):
            head = first_head + number // G
            y, x, there = group_pixels(number % G, tile_y, tile_x, H, W, G, TH, TW)
            own = load_vectors(k + image * kb + head * C, y, x, there, ky, kx, C, CP)
            own = less_position(own, position, y, x, there, H, W, C, CP, HAS_POSITION)
            own_value = load_vectors(v + image * vb + head * C, y, x, there, vy, vx, C, CP)
            plane = (image * heads + head) * HO * WO
            exact_key, exact_value = key_pixels(
                own, own_value, q + image * qb + head * C, dout + image * gb + head * C, top + plane, total + plane,
                inner + plane, q, q, y, x, there, taps, row_readers, column_readers, row_most, column_most,
                SIDE * SIDE, H, W, WO, FOLDS_Y, FOLDS_X, qy, qx, gy, gx, scale, C, CP, False, False,
            )  # fmt: skip
            store_vectors(dk + image * ob + head * C, exact_key * (scale * factor), y, x, there, oy, ox, C, CP)
            store_vectors(dv + image * ob + head * C, exact_value * factor, y, x, there, oy, ox, C, CP)
