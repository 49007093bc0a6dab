"""The products over a neighbourhood out of standard operators of torch alone, for any size of map.

A few gathers and sums each: they hold a map for every offset, as runtimes would for the same written offset by offset,
in a hundredth of the nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.neighborhood import Neighborhood

if TYPE_CHECKING:
    from convattn.ops._products import AggregateInputs, CorrelateInputs, ScatterInputs


def _places(nbhd: Neighborhood, height: int, width: int, device: torch.device) -> Tensor:
    """``[D, Ho, Wo]``: where every output pixel's neighbours lie among the pixels of the padded map, row by row."""
    sizes, along = nbhd.output_size(height, width), []
    for axis in (0, 1):
        before = nbhd.reach(axis)[0]
        starts = torch.tensor([offset[axis] + before for offset in nbhd.offsets], device=device)
        along.append(starts[:, None] + torch.arange(sizes[axis], device=device) * nbhd.stride[axis])
    return along[0][:, :, None] * (width + sum(nbhd.reach(1))) + along[1][:, None]


def _neighbours(nbhd: Neighborhood, x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, D, Ho, Wo]``: every output pixel's neighbour at every offset."""
    places = _places(nbhd, x.shape[2], x.shape[3], x.device)
    sizes = nbhd.output_size(x.shape[2], x.shape[3])
    return nbhd.pad(x).flatten(2).index_select(2, places.flatten()).unflatten(2, (len(nbhd), *sizes))


def correlate(x: CorrelateInputs) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    dtype = accumulation_dtype(x.q.dtype)
    products = x.q.to(dtype)[:, :, None] * _neighbours(x.nbhd, x.k.to(dtype))
    return products.unflatten(1, (x.num_heads, -1)).sum(2).to(x.q.dtype)


def aggregate(x: AggregateInputs) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    dtype = accumulation_dtype(x.v.dtype)
    values = _neighbours(x.nbhd, x.v.to(dtype)).unflatten(1, (x.weights.shape[1], -1))
    return (x.weights.to(dtype)[:, :, None] * values).sum(3).flatten(1, 2).to(x.v.dtype)


def scatter(x: ScatterInputs) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    dtype, (height, width) = accumulation_dtype(x.u.dtype), x.size
    by_head = x.u.to(dtype).unflatten(1, (x.weights.shape[1], -1))
    shares = (x.weights.to(dtype)[:, :, None] * by_head[:, :, :, None]).flatten(1, 2)
    padded_height, padded_width = (size + sum(x.nbhd.reach(axis)) for axis, size in enumerate((height, width)))
    places = _places(x.nbhd, height, width, x.u.device).flatten()
    padded = shares.new_zeros((*shares.shape[:2], padded_height * padded_width)).index_add(2, places, shares.flatten(2))
    return x.nbhd.unpad(padded.unflatten(2, (padded_height, padded_width)), height, width).to(x.u.dtype)
