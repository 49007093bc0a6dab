"""The products over a neighbourhood out of standard operators of torch alone, for any size of map.

Offset by offset: runtimes take a slice for nothing, where a gather of all neighbours at once costs them ten times more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
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


def neighbours(nbhd: Neighborhood, x: Tensor) -> Iterator[Tensor]:
    """For each offset every output pixel's neighbour, ``[..., H, W]`` -> ``[..., Ho, Wo]``.

    Slices; with a stride by index, since a slice with a step ties an exported size to odd or even numbers.
    """
    height, width, padded = x.shape[-2], x.shape[-1], nbhd.pad(x)
    if nbhd.stride == (1, 1):
        yield from nbhd.views(padded, height, width)
        return
    places, sizes = _places(nbhd, height, width, x.device), nbhd.output_size(height, width)
    pixels = padded.flatten(-2)
    for place in places:
        yield pixels.index_select(-1, place.flatten()).unflatten(-1, sizes)


def correlate(x: CorrelateInputs) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    dtype = accumulation_dtype(x.q.dtype)
    q, k = x.q.to(dtype), x.k.to(dtype)
    products = [(q * keys).unflatten(1, (x.num_heads, -1)).sum(2) for keys in neighbours(x.nbhd, k)]
    return torch.stack(products, 2).to(x.q.dtype)


def aggregate(x: AggregateInputs) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    dtype = accumulation_dtype(x.v.dtype)
    weights, by_head = x.weights.to(dtype), x.v.to(dtype).unflatten(1, (x.weights.shape[1], -1))
    pairs = zip(weights.unbind(2), neighbours(x.nbhd, by_head), strict=True)
    return reduce(torch.add, (weight[:, :, None] * values for weight, values in pairs)).flatten(1, 2).to(x.v.dtype)


def scatter(x: ScatterInputs) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    dtype, (height, width) = accumulation_dtype(x.u.dtype), x.size
    by_head = x.u.to(dtype).unflatten(1, (x.weights.shape[1], -1))
    shares = (x.weights.to(dtype)[:, :, None] * by_head[:, :, :, None]).flatten(1, 2)
    padded_height, padded_width = (size + sum(x.nbhd.reach(axis)) for axis, size in enumerate((height, width)))
    places = _places(x.nbhd, height, width, x.u.device).flatten()
    padded = shares.new_zeros((*shares.shape[:2], padded_height * padded_width)).index_add(2, places, shares.flatten(2))
    return x.nbhd.unpad(padded.unflatten(2, (padded_height, padded_width)), height, width).to(x.u.dtype)
