"""``attend`` out of standard operators of torch alone, for any size of map, fast in runtimes without kernels of ours.

By tiles of queries against the halo of keys around them, as :mod:`convattn.ops.attend.eager`: whole pixels are gathered
into tiles, and two batched products follow, of tensors of at most five dimensions. The tiles are counted in arithmetic
that a symbolic size goes through. A small map of known size is one tile, so nothing is gathered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from math import inf, log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._portable import gather_pixels, pixel_places, pixels_of
from convattn.ops._recording import map_size, size_of
from convattn.ops.attend import offsets
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.tiles import Axis, axis_of, keys_of
from convattn.ops.neighborhood import Neighborhood

TILE = (4, 4)
"""Rows and columns of a tile of queries: measured in onnxruntime and OpenVINO, 4 beats 7 on all but small maps."""
TILE_OF_NARROW_HEADS = (4, 8)
"""The same where a key has so few channels that gathering it costs more than a logit: keys are gathered less often."""
NARROW = 16
LEAST_DENSITY = 0.25
"""Which share of the pixels that a tile's window spans must be neighbours; of fewer, offset by offset is cheaper."""
MOST_PARTS = 4
"""In how many parts the heads are computed, one after the other."""
LOGITS_OF_WHOLE_MAP = 2
"""How many times the logits of tiles a map may have that is one tile: measured, no gathers save as much."""


class _Places(NamedTuple):
    """The ``n`` tiles along one axis of a map; sizes are written out, since symbolic ones are hard to infer."""

    n: Any
    tile: int
    halo: int
    queries: Tensor
    """The output of each query, ``[n * tile]``; past the end the last."""
    keys: Tensor
    """The pixel that each key reads, ``[n * halo]``; -1 reads zero."""
    outputs: Tensor
    """Where each output is among the queries."""


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    axes = _axes(x.nbhd, x.k.shape[1] // x.num_heads)
    spanned = [(axis.last - axis.first) // axis.grid + 1 for axis in axes]
    if len(x.nbhd) < LEAST_DENSITY * spanned[0] * spanned[1]:
        return offsets.attend(x)
    dtype, size = accumulation_dtype(x.q.dtype), map_size(x.k)
    q, k, v = (pixels_of(t.to(dtype), x.num_heads) for t in (x.q, x.k, x.v))
    out = attend_pixels(x, (q, k, v), size)
    return out.transpose(-2, -1).reshape(-1, size_of(x.q, 1), *x.nbhd.output_size(*size)).to(x.q.dtype)


def attend_pixels(x: AttendInputs, pixels: tuple[Tensor, Tensor, Tensor], size: tuple[Any, Any]) -> Tensor:
    """The same on pixels, row by row.

    Args:
        x: what is asked for; its maps are not read.
        pixels: queries ``[B, N, Ho * Wo, d]``, keys and values ``[B, N, H * W, d]``.
        size: H and W, numbers where the program serves one size.

    Returns:
        ``[B, N, Ho * Wo, d]``.
    """
    q, k, v = pixels
    axes = _axes(x.nbhd, q.shape[3])
    if _is_one_tile(x, size, axes):
        times = torch.tensor(_log_meetings(x.nbhd, *size), dtype=q.dtype, device=q.device)
        return ((q * x.scale) @ k.transpose(-2, -1) + times).softmax(-1) @ v
    sizes = x.nbhd.output_size(*size)
    rows, columns = (_places(x.nbhd, axis, size[i], sizes[i], k.device) for i, axis in enumerate(axes))
    queries = rows.queries.view(-1, 1, rows.tile, 1) * sizes[1] + columns.queries.view(-1, 1, columns.tile)
    keys = pixel_places(rows.keys.view(-1, 1, rows.halo, 1), columns.keys.view(-1, 1, columns.halo), size[1], x.nbhd)
    table, outputs = _offsets_of(x.nbhd, *axes), _outputs(rows, columns)
    of_head, tile, d = rows.n * columns.n, rows.tile * columns.tile, size_of(q, 3)

    def of_heads(part: AttendInputs, first: int) -> Tensor:
        q, k, v = (t[:, first : first + part.num_heads] for t in pixels)
        q = q.index_select(2, queries.flatten()).reshape(-1, tile, d)
        k, v = (gather_pixels(t, keys, x.nbhd).reshape(-1, rows.halo * columns.halo, d) for t in (k, v))
        out = _logits(part, q, k, of_head, table).softmax(-1) @ v
        return out.reshape(-1, part.num_heads, of_head * tile, d).index_select(2, outputs)

    return torch.cat([of_heads(part, first) for part, first in _by_heads(x)], 1)


def _by_heads(x: AttendInputs) -> Iterator[tuple[AttendInputs, int]]:
    """What is asked for, for some heads at a time: the logits of all would not stay in the cache."""
    count = -(-x.num_heads // MOST_PARTS)
    for first in range(0, x.num_heads, count):
        heads = slice(first, min(first + count, x.num_heads))
        bias, key_offsets = (t if t is None or len(t) == 1 else t[heads] for t in (x.bias, x.key_offsets))
        yield x._replace(bias=bias, key_offsets=key_offsets, num_heads=heads.stop - first), first


def _axes(nbhd: Neighborhood, head_dim: Any) -> tuple[Axis, Axis]:
    tile = TILE_OF_NARROW_HEADS if int(head_dim) <= NARROW else TILE
    return axis_of(nbhd, 0, tile[0]), axis_of(nbhd, 1, tile[1])


def _is_one_tile(x: AttendInputs, size: tuple[Any, Any], axes: tuple[Axis, Axis]) -> bool:
    """Whether all queries meet all keys, a key counted as often as a window meets it at the border."""
    depends = x.bias is not None or x.key_offsets is not None or x.nbhd.border == "zeros"
    if depends or not all(isinstance(side, int) for side in size):
        return False
    whole, of_tiles = size[0] * size[1], 1
    for count, axis in zip(x.nbhd.output_size(*size), axes, strict=True):
        whole *= count
        of_tiles *= axis.spacing * ((count - 1) // (axis.spacing * axis.tile) + 1) * axis.tile * axis.halo
    return whole <= LOGITS_OF_WHOLE_MAP * of_tiles


@lru_cache(maxsize=64)
def _log_meetings(nbhd: Neighborhood, height: int, width: int) -> list[list[float]]:
    """How often the window of every output meets every pixel, as logarithms, ``[Ho * Wo, H * W]``."""
    found, (rows, columns) = [], nbhd.output_size(height, width)
    for row, column in ((i * nbhd.stride[0], j * nbhd.stride[1]) for i in range(rows) for j in range(columns)):
        met = Counter((nbhd.source(row + dy, height), nbhd.source(column + dx, width)) for dy, dx in nbhd.offsets)
        pixels = (met.get((y, z), 0) for y in range(height) for z in range(width))
        found.append([log(times) if times else -inf for times in pixels])
    return found


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
    outputs = torch.arange(count, device=device)
    if phases > 1:
        step = outputs.div(phases, rounding_mode="floor")
        outputs = (outputs - step * phases) * (n * tile) + step
    last = torch.zeros_like(queries) + (count - 1)
    keys = nbhd.sources(positions.flatten(), size)
    return _Places(phases * n, tile, axis.halo, torch.minimum(queries, last), keys, outputs)


def _outputs(rows: _Places, columns: _Places) -> Tensor:
    """The place of every output among the queries of all tiles."""
    (down, row), (along, column) = (_in_tiles(places) for places in (rows, columns))
    of_tile = (down[:, None] * columns.n + along) * (rows.tile * columns.tile)
    return (of_tile + row[:, None] * columns.tile + column).flatten()


def _in_tiles(places: _Places) -> tuple[Tensor, Tensor]:
    """The tile of every output along an axis, and its place in it."""
    tile = places.outputs.div(places.tile, rounding_mode="floor")
    return tile, places.outputs - tile * places.tile


def _logits(x: AttendInputs, queries: Tensor, keys: Tensor, of_head: Any, table: list[list[int]]) -> Tensor:
    """``[B N n m, tile², halo²]``, minus infinity where a key is no neighbour of a query."""
    queries = queries * x.scale
    logits, heads = queries @ keys.transpose(-2, -1), x.num_heads
    added = [[0.0 if offset >= 0 else -inf for offset in row] for row in table]
    outside = torch.tensor(added, dtype=logits.dtype, device=logits.device)
    count, window = len(table), len(table[0])
    place = torch.tensor(table, device=keys.device).clamp(min=0)
    vectors = x.vectors(queries)
    if vectors is not None:
        toward = queries.reshape(-1, heads, of_head * count, queries.shape[2]) @ vectors.transpose(-2, -1)
        toward = toward.reshape(-1, count, len(x.nbhd))
        logits = logits + toward.gather(2, place.expand(toward.shape[0], count, window))
    if x.bias is None:
        return logits + outside
    bias = x.bias.to(logits.dtype).expand(heads, -1)[:, place] + outside
    by_head = logits.reshape(-1, heads, of_head, count * window) + bias.reshape(heads, 1, -1)
    return by_head.reshape(-1, count, window)
