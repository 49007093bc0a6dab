"""How a map is cut into tiles of queries, each with the halo of keys that its queries look at.

Queries of one tile lie so far apart that their offsets fall on one grid of keys: every ``spacing``-th output along an
axis, keys every ``grid`` pixels. That keeps the halo dense for any stride and dilation, and the relation between the
a-th query and the b-th key of a tile the same in every tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood, strided_size


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis."""

    size: int
    count: int
    stride: int
    first: int
    last: int
    grid: int
    spacing: int
    tile: int

    @property
    def ratio(self) -> int:
        """Keys from one query of a tile to the next."""
        return self.spacing * self.stride // self.grid

    @property
    def halo(self) -> int:
        """Keys that a tile reads."""
        return (self.tile - 1) * self.ratio + (self.last - self.first) // self.grid + 1

    @property
    def bases(self) -> list[int]:
        """The first output of every tile."""
        step = self.tile * self.spacing
        return [base for phase in range(min(self.spacing, self.count)) for base in range(phase, self.count, step)]

    def _places(self, device: torch.device) -> Tensor:
        steps = torch.arange(self.tile, device=device) * self.spacing
        return (torch.tensor(self.bases, device=device)[:, None] + steps).flatten()

    def queries(self, device: torch.device) -> Tensor:
        """Output index of every query ``[tiles * tile]``; those past the end read the last one and count nowhere."""
        return self._places(device).clamp(max=self.count - 1)

    def outputs(self, device: torch.device) -> Tensor:
        """The place of every output ``[count]`` among the queries."""
        places = self._places(device)
        real = (places < self.count).nonzero().flatten()
        return torch.empty_like(places[: self.count]).scatter_(0, places[real], real)

    def keys(self, nbhd: Neighborhood, device: torch.device) -> Tensor:
        """The pixel that every key ``[tiles * halo]`` reads; -1 reads zero."""
        starts = torch.tensor(self.bases, device=device)[:, None] * self.stride + self.first
        return nbhd.sources((starts + torch.arange(self.halo, device=device) * self.grid).flatten(), self.size)


def _axis(nbhd: Neighborhood, axis: int, size: int, tile: int) -> Axis:
    of_any_size = axis_of(nbhd, axis, tile)
    count = strided_size(size, of_any_size.stride)
    fitting = min(tile, -(-count // of_any_size.spacing))
    return replace(of_any_size, size=size, count=count, tile=fitting)


def axis_of(nbhd: Neighborhood, axis: int, tile: int) -> Axis:
    """Whole tiles along an axis (0: rows, 1: columns) of a map of any size; size and count are 0."""
    along = [offset[axis] for offset in nbhd.offsets]
    stride, first, last = nbhd.stride[axis], min(along), max(along)
    grid = math.gcd(*(o - first for o in along)) or stride
    return Axis(0, 0, stride, first, last, grid, grid // math.gcd(grid, stride), tile)


def _cost(axis: Axis) -> float:
    """Logits along the axis, queries past the end included, and a tile's own cost in units of a logit."""
    return len(axis.bases) * (axis.tile * axis.halo + 5 * axis.halo)


@lru_cache(maxsize=512)
def plan(nbhd: Neighborhood, height: int, width: int) -> tuple[Axis, Axis]:
    """The cheapest tiling of a map, rows and columns chosen apart."""
    candidates = (4, 5, 6, 7, 8, 10, 12, 14, 16)
    rows = min((_axis(nbhd, 0, height, tile) for tile in candidates), key=_cost)
    columns = min((_axis(nbhd, 1, width, tile) for tile in candidates), key=_cost)
    return rows, columns


@lru_cache(maxsize=64)
def relation(nbhd: Neighborhood, rows: Axis, columns: Axis) -> tuple[Tensor, Tensor]:
    """Which offset leads from query to key in a tile.

    Returns:
        offset index ``[tile_h * tile_w, halo_h * halo_w]`` (-1: not in the neighbourhood), and its inverse, the key
        that each offset of each query leads to, ``[tile_h * tile_w, K]``.
    """
    leads = torch.tensor(keys_of(nbhd, rows, columns))
    table = torch.full((len(leads), rows.halo * columns.halo), -1)
    return table.scatter_(1, leads, torch.arange(len(nbhd)).expand(len(leads), -1)), leads


def keys_of(nbhd: Neighborhood, rows: Axis, columns: Axis) -> list[list[int]]:
    """The key of a tile that each offset of each of its queries leads to, ``[tile_h * tile_w, K]``, row by row."""
    return [
        [
            ((dy - rows.first) // rows.grid + a * rows.ratio) * columns.halo
            + (dx - columns.first) // columns.grid
            + c * columns.ratio
            for dy, dx in nbhd.offsets
        ]
        for a in range(rows.tile)
        for c in range(columns.tile)
    ]
