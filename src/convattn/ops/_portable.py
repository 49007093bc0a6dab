"""The products over a neighbourhood out of standard operators of torch alone, for any size of map.

Offset by offset: runtimes take a slice for nothing, where a gather of all neighbours at once costs them ten times more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._layout import accumulation_dtype
from convattn.ops._recording import map_size, size_of
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

    Slices; with a stride of the map's every second row and column and of those between. These are read by index, since
    a slice with a step ties an exported size to odd or even numbers.
    """
    height, width, padded = x.shape[-2], x.shape[-1], nbhd.pad(x)
    if nbhd.stride == (1, 1):
        yield from nbhd.views(padded, height, width)
        return
    sizes, steps = nbhd.output_size(height, width), nbhd.stride
    rows, columns = ([offset[axis] + nbhd.reach(axis)[0] for offset in nbhd.offsets] for axis in (0, 1))
    found: dict[tuple[int, int], Tensor] = {}
    of_rows = {p: _every(padded, -2, steps[0], p, sizes[0], rows) for p in {row % steps[0] for row in rows}}
    for row, column in zip(rows, columns, strict=True):
        phase = row % steps[0], column % steps[1]
        if phase not in found:
            found[phase] = _every(of_rows[phase[0]], -1, steps[1], phase[1], sizes[1], columns)
        down, across = row // steps[0], column // steps[1]
        yield found[phase][..., down : down + sizes[0], across : across + sizes[1]]


def _every(x: Tensor, dim: int, step: int, phase: int, outputs: Any, starts: list[int]) -> Tensor:
    """Every ``step``-th row or column from number ``phase`` on, as many as outputs read from these starts."""
    if step == 1:
        return x
    most = max(start // step for start in starts if start % step == phase)
    return x.index_select(dim, torch.arange(outputs + most, device=x.device) * step + phase)


def neighbourhoods(nbhd: Neighborhood, x: Tensor, num_heads: int) -> Tensor:
    """Every output pixel's neighbours side by side, ``[B, N * d, H, W]`` -> ``[B, N, Ho * Wo, D, d]``."""
    size, along = map_size(x), []
    for axis, outputs in enumerate(nbhd.output_size(*size)):
        distances = torch.tensor([offset[axis] for offset in nbhd.offsets], device=x.device)
        centres = torch.arange(outputs, device=x.device) * nbhd.stride[axis]
        along.append(nbhd.sources(centres[:, None] + distances, size[axis]))
    places = pixel_places(along[0][:, None], along[1], size[1], nbhd)
    return gather_pixels(pixels_of(x, num_heads), places, nbhd).unflatten(2, (-1, len(nbhd)))


def pixels_of(x: Tensor, num_heads: int) -> Tensor:
    """``[B, N * d, H, W]`` -> ``[B, N, H * W, d]``: the channels of a head lie together."""
    height, width = map_size(x)
    return x.reshape(-1, num_heads, size_of(x, 1) // num_heads, height * width).transpose(-2, -1)


def pixel_places(rows: Tensor, columns: Tensor, width: Any, nbhd: Neighborhood) -> Tensor:
    """Where pixels of a map lie among all, row by row; -1 where a row or column is: that reads zero."""
    places = rows * width + columns
    return places if nbhd.border != "zeros" else places.masked_fill((rows < 0) | (columns < 0), -1)


def gather_pixels(pixels: Tensor, places: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[B, N, H * W, d]`` -> ``[B, N, P, d]``: whole pixels, at those places."""
    if nbhd.border == "zeros":
        pixels, places = F.pad(pixels, [0, 0, 1, 0]), places + 1
    return pixels.index_select(2, places.flatten())


def softmax(x: Tensor, dim: int) -> Tensor:
    """``x.softmax(dim)``; step by step for runtimes, which turn a map around for the softmax along a middle axis."""
    if not (_dispatch.needs_standard_operators() or _dispatch.is_portable_wanted()):
        return x.softmax(dim)
    wide = x.to(accumulation_dtype(x.dtype))
    raised = (wide - wide.amax(dim, keepdim=True).detach()).exp()
    return (raised / raised.sum(dim, keepdim=True)).to(x.dtype)


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
