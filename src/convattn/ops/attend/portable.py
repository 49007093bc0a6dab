"""``attend`` out of standard operators of torch alone, for any size of map, fast in runtimes without kernels of ours.

By tiles of queries against the halo of keys around them, as :mod:`convattn.ops.attend.eager`: one gather an axis and
two batched products, no tensor of more than five dimensions. The tiles are counted in arithmetic that a symbolic size
goes through.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.attend import offsets
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.tiles import Axis, axis_of, keys_of
from convattn.ops.neighborhood import Neighborhood

TILE = 4
"""Queries of a tile along an axis: measured in onnxruntime and OpenVINO, 4 beats 7 on all but the smallest maps."""
LEAST_DENSITY = 0.25
"""Which share of the pixels that a tile's window spans must be neighbours; of fewer, offset by offset is cheaper."""


class _Places(NamedTuple):
    """The ``n`` tiles along one axis of a map; sizes are written out, since symbolic ones are hard to infer."""

    n: Any
    tile: int
    halo: int
    queries: Tensor
    """The output of each query, ``[n * tile]``; past the end the last."""
    keys: Tensor
    """The pixel that each key reads, ``[n * halo]``; -1 reads zero."""
    outputs: Any
    """Where each output is among the queries: how many of the first, or which."""


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    axes = axis_of(x.nbhd, 0, TILE), axis_of(x.nbhd, 1, TILE)
    spanned = [(axis.last - axis.first) // axis.grid + 1 for axis in axes]
    if len(x.nbhd) < LEAST_DENSITY * spanned[0] * spanned[1]:
        return offsets.attend(x)
    sizes = x.nbhd.output_size(x.k.shape[2], x.k.shape[3])
    rows, columns = (_places(x.nbhd, axis, x.k.shape[2 + i], sizes[i], x.k.device) for i, axis in enumerate(axes))
    dtype, (batch, channels) = accumulation_dtype(x.q.dtype), x.q.shape[:2]
    planes, head_dim = batch * x.num_heads, channels // x.num_heads
    q, k, v = (t.to(dtype).reshape(planes, head_dim, *t.shape[2:]).permute(0, 2, 3, 1) for t in (x.q, x.k, x.v))
    queries = q.index_select(1, rows.queries).index_select(2, columns.queries)
    queries = _cut(queries, (rows.n, rows.tile), (columns.n, columns.tile))
    keys, values = (
        _cut(_read(t, rows.keys, columns.keys, x.nbhd), (rows.n, rows.halo), (columns.n, columns.halo)) for t in (k, v)
    )
    table = torch.tensor(_offsets_of(x.nbhd, *axes), device=x.k.device)
    weights = _logits(x, queries, keys, table).softmax(-1)
    out = _joined(weights @ values, planes, rows, columns)
    return out.permute(0, 3, 1, 2).reshape(batch, channels, *sizes).to(x.q.dtype)


@lru_cache(maxsize=64)
def _offsets_of(nbhd: Neighborhood, rows: Axis, columns: Axis) -> list[list[int]]:
    """The offset that leads from each query of a tile to each key, ``[tile², halo²]``, -1 where none does.

    Of Python's numbers: whoever records a program would record how a tensor is filled.
    """
    found = []
    for leads in keys_of(nbhd, rows, columns):
        table = [-1] * (rows.halo * columns.halo)
        for offset, key in enumerate(leads):
            table[key] = offset
        found.append(table)
    return found


def _places(nbhd: Neighborhood, axis: Axis, size: Any, count: Any, device: torch.device) -> _Places:
    """Tile by tile for each phase, the outputs between two queries of a tile."""
    phases, tile = axis.spacing, axis.tile
    n = ((count - 1) // phases) // tile + 1
    base = torch.arange(n, device=device) * (tile * phases)
    bases = (torch.arange(phases, device=device)[:, None] + base).flatten()
    queries = (bases[:, None] + torch.arange(tile, device=device) * phases).flatten()
    positions = bases[:, None] * axis.stride + axis.first + torch.arange(axis.halo, device=device) * axis.grid
    outputs = count
    if phases > 1:
        step = torch.arange(count, device=device).div(phases, rounding_mode="floor")
        outputs = (torch.arange(count, device=device) - step * phases) * (n * tile) + step
    last = torch.zeros_like(queries) + (count - 1)
    return _Places(
        phases * n, tile, axis.halo, torch.minimum(queries, last), nbhd.sources(positions.flatten(), size), outputs
    )


def _read(x: Tensor, rows: Tensor, columns: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[P, H, W, d]`` at those rows and columns; a place of -1 reads zero."""
    if nbhd.border != "zeros":
        return x.index_select(1, rows).index_select(2, columns)
    found = x.index_select(1, rows.clamp(min=0)).index_select(2, columns.clamp(min=0))
    inside = (rows >= 0)[:, None] & (columns >= 0)
    return found.masked_fill(~inside[..., None], 0)


def _cut(x: Tensor, rows: tuple[Any, int], columns: tuple[Any, int]) -> Tensor:
    """``[P, n h, m w, d]`` -> ``[P n m, h w, d]``."""
    (planes, _, _, d), (n, h), (m, w) = x.shape, rows, columns
    return x.reshape(planes * n, h, m, w, d).transpose(1, 2).reshape(planes * n * m, h * w, d)


def _joined(out: Tensor, planes: Any, rows: _Places, columns: _Places) -> Tensor:
    """``[P n m, h w, d]`` -> ``[P, Ho, Wo, d]``."""
    (n, h), (m, w), d = (rows.n, rows.tile), (columns.n, columns.tile), out.shape[2]
    together = out.reshape(planes * n, m, h, w, d).transpose(1, 2).reshape(planes, n * h, m * w, d)
    for dim, outputs in ((1, rows.outputs), (2, columns.outputs)):
        in_order = not isinstance(outputs, Tensor) or outputs.dim() == 0
        together = together.narrow(dim, 0, outputs) if in_order else together.index_select(dim, outputs)
    return together


def _logits(x: AttendInputs, queries: Tensor, keys: Tensor, table: Tensor) -> Tensor:
    """``[B N n m, tile², halo²]``, minus infinity where a key is no neighbour of a query."""
    logits = (queries * x.scale) @ keys.transpose(1, 2)
    outside, place = table < 0, table.clamp(min=0)
    (tiles, queries_of, keys_of), batch, heads = logits.shape, x.q.shape[0], x.num_heads
    of_head = tiles // (batch * heads) if batch else 0
    vectors = x.vectors(queries)
    if vectors is not None:
        toward = (queries * x.scale).reshape(batch, heads, of_head * queries_of, queries.shape[2])
        toward = (toward @ vectors.transpose(1, 2)).reshape(tiles, queries_of, len(x.nbhd))
        logits = logits + toward.gather(2, place.expand(tiles, queries_of, keys_of))
    if x.bias is None:
        return logits.masked_fill(outside, -torch.inf)
    bias = x.bias.to(logits.dtype).expand(heads, -1)[:, place].masked_fill(outside, -torch.inf)
    by_head = logits.reshape(batch, heads, of_head, queries_of * keys_of) + bias.reshape(heads, 1, -1)
    return by_head.reshape(tiles, queries_of, keys_of)
