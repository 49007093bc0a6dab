"""``attend`` by tiles of queries and their halo of keys: batched matrix products, forward and backward.

Nothing but the inputs is kept between forward and backward; a tile's logits live for one step of a loop. Where a value
is not finite the result is computed again offset by offset: in a product of matrices 0 * NaN would carry it beyond
its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops._dispatch import working_set_bytes
from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.attend import offsets
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.tiles import Axis, plan, relation
from convattn.ops.neighborhood import Neighborhood, put, take


def _planes(x: Tensor, num_heads: int) -> Tensor:
    """``[B, C, H, W]`` -> ``[B * N, H, W, d]`` in the dtype that sums run in."""
    by_head = x.unflatten(1, (num_heads, -1)).permute(0, 1, 3, 4, 2)
    return by_head.to(accumulation_dtype(x.dtype), memory_format=torch.contiguous_format).flatten(0, 1)


def _map(planes: Tensor, like: Tensor) -> Tensor:
    """``[B * N, H, W, d]`` -> ``[B, C, H, W]`` in the dtype and layout of ``like``."""
    batch = like.shape[0]
    by_head = planes.unflatten(0, (batch, -1)).permute(0, 1, 4, 2, 3).flatten(1, 2)
    return by_head.to(like.dtype).contiguous(memory_format=memory_format_of(like))


@dataclass
class _Tiling:
    """A tiling of one map with its index tensors on one device."""

    nbhd: Neighborhood
    rows: Axis
    columns: Axis
    mask: Tensor
    inverse: Tensor
    key_offsets: Tensor | None
    offset_index: Tensor
    pixels: tuple[Tensor, Tensor, Tensor, Tensor]

    def cut_queries(self, x: Tensor, tiles: slice) -> Tensor:
        """``[P, Ho, Wo, d]`` -> ``[P, tiles, tile pixels, d]`` for some rows of tiles."""
        rows, columns = self.pixels[:2]
        t = self.rows.tile
        x = take(take(x, 1, rows[tiles.start * t : tiles.stop * t]), 2, columns)
        return _to_tiles(x, t, self.columns.tile)

    def cut_keys(self, x: Tensor, tiles: slice) -> Tensor:
        """``[P, H, W, d]`` -> ``[P, tiles, halo pixels, d]`` for some rows of tiles."""
        rows, columns = self.pixels[2:]
        h = self.rows.halo
        x = take(take(x, 1, rows[tiles.start * h : tiles.stop * h]), 2, columns)
        return _to_tiles(x, h, self.columns.halo)

    def add_keys(self, total: Tensor, x: Tensor, tiles: slice) -> None:
        """The adjoint of :meth:`cut_keys`, added to ``total``."""
        rows, columns = self.pixels[2:]
        h = self.rows.halo
        x = _from_tiles(x, h, self.columns.halo, len(self.columns.bases))
        x = put(x, 2, columns, self.columns.size)
        total += put(x, 1, rows[tiles.start * h : tiles.stop * h], self.rows.size)

    def weights(self, q: Tensor, k: Tensor, heads: Tensor) -> Tensor:
        """Softmax weights ``[P, tiles, tile pixels, halo pixels]`` of tiles of planes of the given heads."""
        shape, keys = q.shape[:2], k.flatten(0, 1).transpose(1, 2)
        mask = self.mask if len(self.mask) == 1 else self.mask[heads].repeat_interleave(shape[1], 0)
        logits = torch.baddbmm(mask, q.flatten(0, 1), keys).unflatten(0, shape)
        if self.key_offsets is not None:
            toward = q @ self.key_offsets[heads][:, None].transpose(-1, -2)
            logits += toward.gather(-1, self.offset_index.expand(*shape, -1, -1))
        return logits.softmax(-1)


def _to_tiles(x: Tensor, tile_h: int, tile_w: int) -> Tensor:
    x = x.unflatten(2, (-1, tile_w)).unflatten(1, (-1, tile_h)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def _from_tiles(x: Tensor, tile_h: int, tile_w: int, across: int) -> Tensor:
    x = x.unflatten(1, (-1, across)).unflatten(3, (tile_h, tile_w)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def _tiling(x: AttendInputs) -> _Tiling:
    k, bias, nbhd = x.k, x.bias, x.nbhd
    rows, columns = plan(nbhd, *k.shape[-2:])
    index, inverse = (t.to(k.device) for t in relation(nbhd, rows, columns))
    dtype = accumulation_dtype(k.dtype)
    outside, index = index < 0, index.clamp(min=0)
    mask = k.new_zeros(1, *index.shape, dtype=dtype) if bias is None else bias.to(dtype)[:, index]
    mask = mask.masked_fill(outside, float("-inf"))
    if bias is not None:
        mask = mask.expand(x.num_heads, -1, -1)
    pixels = (
        rows.queries(k.device),
        columns.queries(k.device),
        rows.keys(nbhd, k.device),
        columns.keys(nbhd, k.device),
    )
    return _Tiling(nbhd, rows, columns, mask, inverse, x.vectors(mask), index, pixels)


def _steps(tiling: _Tiling, planes: int, element_size: int) -> Iterator[tuple[slice, slice]]:
    """Planes and rows of tiles to take at a time, so that their logits fit the working set."""
    rows, columns = tiling.rows, tiling.columns
    tile_rows = len(rows.bases)
    logits = rows.tile * columns.tile * rows.halo * columns.halo * len(columns.bases) * element_size
    budget = working_set_bytes(tiling.mask.device)
    height = max(1, min(tile_rows, budget // logits))
    depth = max(1, budget // (logits * height)) if height == tile_rows else 1
    for start in range(0, planes, depth):
        for top in range(0, tile_rows, height):
            yield slice(start, min(start + depth, planes)), slice(top, min(top + height, tile_rows))


def _place(total: Tensor, tiling: _Tiling, planes: slice, tiles: slice, x: Tensor) -> None:
    """Write tiles ``[P, tiles, tile pixels, d]`` into their rows of queries in ``total``."""
    t = tiling.rows.tile
    total[planes, tiles.start * t : tiles.stop * t] = _from_tiles(x, t, tiling.columns.tile, len(tiling.columns.bases))


def _gather_outputs(total: Tensor, tiling: _Tiling) -> Tensor:
    """Queries in the order of tiles ``[P, tiles * tile, tiles * tile, d]`` -> outputs ``[P, Ho, Wo, d]``."""
    for dim, axis in ((1, tiling.rows), (2, tiling.columns)):
        if axis.spacing == 1:
            total = total.narrow(dim, 0, axis.count)
        else:
            total = total.index_select(dim, axis.outputs(total.device))
    return total


def _empty_queries(tiling: _Tiling, planes: Tensor) -> Tensor:
    return planes.new_empty((planes.shape[0], len(tiling.pixels[0]), len(tiling.pixels[1]), planes.shape[-1]))


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    if x.q.numel() == 0:
        return torch.empty_like(x.q)
    tiling = _tiling(x)
    queries, keys, values = (_planes(t, x.num_heads) for t in (x.q, x.k, x.v))
    queries = queries * x.scale
    out = _empty_queries(tiling, queries)
    heads = torch.arange(len(queries), device=queries.device) % x.num_heads
    for planes, tiles in _steps(tiling, len(queries), queries.element_size()):
        weights = tiling.weights(
            tiling.cut_queries(queries[planes], tiles), tiling.cut_keys(keys[planes], tiles), heads[planes]
        )
        _place(out, tiling, planes, tiles, weights @ tiling.cut_keys(values[planes], tiles))
    if not bool(out.sum().isfinite()):
        return offsets.attend(x)
    return _map(_gather_outputs(out, tiling), x.q)


def attend_backward(grad: Tensor, x: AttendInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AttendInputs.tensors`."""
    q, k, v, bias, key_offsets, *_ = x
    if q.numel() == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in x.tensors)
    tiling = _tiling(x)
    queries, keys, values, douts = (_planes(t, x.num_heads) for t in (q, k, v, grad))
    queries = queries * x.scale
    dq, dk, dv = _empty_queries(tiling, queries), torch.zeros_like(keys), torch.zeros_like(values)
    heads = torch.arange(len(queries), device=q.device) % x.num_heads
    real = _real_queries(tiling, q.device)
    by_head = queries.new_zeros((x.num_heads, len(x.nbhd)), dtype=torch.float64)
    toward_by_head = queries.new_zeros((x.num_heads, len(x.nbhd), queries.shape[-1]))
    for planes, tiles in _steps(tiling, len(queries), 3 * queries.element_size()):
        qt, kt = tiling.cut_queries(queries[planes], tiles), tiling.cut_keys(keys[planes], tiles)
        vt, dt = tiling.cut_keys(values[planes], tiles), tiling.cut_queries(douts[planes], tiles)
        dt = dt * real[tiles.start * len(tiling.columns.bases) : tiles.stop * len(tiling.columns.bases)]
        weights = tiling.weights(qt, kt, heads[planes])
        tiling.add_keys(dv[planes], weights.transpose(-1, -2) @ dt, tiles)
        dlogits = _softmax_backward(dt @ vt.transpose(-1, -2), weights)
        per_offset = _per_offset(tiling, dlogits) if bias is not None or key_offsets is not None else None
        if bias is not None and per_offset is not None:
            by_head.index_add_(0, heads[planes], per_offset.sum((1, 2), dtype=torch.float64))
        dqt = dlogits @ kt
        tiling.add_keys(dk[planes], dlogits.transpose(-1, -2) @ qt, tiles)
        if tiling.key_offsets is not None and per_offset is not None:
            dqt += per_offset @ tiling.key_offsets[heads[planes]][:, None]
            toward_by_head.index_add_(0, heads[planes], (per_offset.transpose(-1, -2) @ qt).sum(1))
        _place(dq, tiling, planes, tiles, dqt)
    if not bool((dq.sum() + dk.sum() + dv.sum()).isfinite()):
        return offsets.attend_backward(grad, x)
    dq *= x.scale
    dbias = None if bias is None else by_head.sum_to_size(bias.shape)
    doffsets = None if key_offsets is None else toward_by_head.sum_to_size(key_offsets.shape)
    return _map(_gather_outputs(dq, tiling), q), _map(dk, k), _map(dv, v), dbias, doffsets


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)


def _real_queries(tiling: _Tiling, device: torch.device) -> Tensor:
    """1 where a tile's query is an output, 0 where it repeats the last one ``[tiles, tile pixels, 1]``."""
    rows, columns = (_real(axis, device) for axis in (tiling.rows, tiling.columns))
    grid = rows[:, None] & columns[None]
    return _to_tiles(grid[None, :, :, None], tiling.rows.tile, tiling.columns.tile)[0]


def _real(axis: Axis, device: torch.device) -> Tensor:
    real = torch.zeros(len(axis.bases) * axis.tile, dtype=torch.bool, device=device)
    real[axis.outputs(device)] = True
    return real


def _per_offset(tiling: _Tiling, dlogits: Tensor) -> Tensor:
    """``[P, tiles, tile pixels, halo pixels]`` -> ``[P, tiles, tile pixels, K]``."""
    return dlogits.gather(-1, tiling.inverse.expand(*dlogits.shape[:2], -1, -1))
