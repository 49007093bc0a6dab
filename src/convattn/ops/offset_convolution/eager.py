"""``offset_convolution`` by the shifted maps of some offsets side by side and one matrix product for these."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.neighborhood import Neighborhood

OFFSETS_AT_ONCE = 8
"""Enough for large products; a map is held for each, and sums of fewer terms round less."""


def offset_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.offset_convolution`; made of differentiable operators that ONNX has too."""
    nbhd = nbhd.on_map(x.shape[2], x.shape[3])
    out = _at_centres(x, weight, nbhd) if nbhd.offsets == ((0, 0),) else _at_offsets(x, weight, nbhd)
    size = (x.shape[0], *nbhd.output_size(x.shape[2], x.shape[3]))
    assembled = out.permute(1, 0, 2).flatten(1).unflatten(0, size).permute(0, 3, 1, 2)
    return assembled if bias is None else assembled + bias.to(x.dtype)[:, None, None]


def _at_centres(x: Tensor, weight: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[G, B * Ho * Wo, V]`` of a 1x1 convolution: no maps are copied."""
    return torch.matmul(nbhd.centres(x).permute(0, 2, 3, 1).flatten(0, 2), weight.to(x.dtype))


def _at_offsets(x: Tensor, weight: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[G, B * Ho * Wo, V]``."""
    inputs, padded = x.shape[1], nbhd.pad(x).permute(0, 2, 3, 1)
    pixels, weight = padded.flatten(1, 2), weight.to(x.dtype)
    places = _places(nbhd, x, padded.shape[2])

    def products(first: int) -> Tensor:
        taken = places[:, first : first + OFFSETS_AT_ONCE]
        seen = pixels.index_select(1, taken.flatten()).unflatten(1, taken.shape).flatten(2).flatten(0, 1)
        return torch.matmul(seen, weight[:, first * inputs : (first + taken.shape[1]) * inputs])

    return reduce(torch.add, map(products, range(0, len(nbhd), OFFSETS_AT_ONCE)))


def offset_convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, nbhd: Neighborhood) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, offset by offset, so that no map is held for each."""
    size, dtype = x.shape[2:], accumulation_dtype(x.dtype)
    blocks, inputs = weight.shape[0], x.shape[1]
    padded = nbhd.pad(x.to(dtype))
    dpadded, dweight = torch.zeros_like(padded), torch.empty(weight.shape, dtype=dtype, device=weight.device)
    toward = grad.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)  # [B * Ho * Wo, G * V]
    views = zip(nbhd.views(padded, *size), nbhd.views(dpadded, *size), strict=True)
    for d, (seen, dseen) in enumerate(views):
        rows = slice(d * inputs, (d + 1) * inputs)
        products = seen.permute(1, 0, 2, 3).flatten(1) @ toward
        dweight[:, rows] = products.unflatten(1, (blocks, -1)).transpose(0, 1)
        from_outputs = toward @ weight[:, rows].to(dtype).transpose(1, 2).flatten(0, 1)
        dseen += from_outputs.unflatten(0, (x.shape[0], *dseen.shape[2:])).permute(0, 3, 1, 2)
    return nbhd.unpad(dpadded, *size).to(x.dtype), dweight.to(weight.dtype)


def _places(nbhd: Neighborhood, x: Tensor, padded_width: int) -> Tensor:
    """``[Ho * Wo, D]``: where every output's neighbours lie among the pixels of the padded map."""
    along = []
    for axis, out in enumerate(nbhd.output_size(x.shape[2], x.shape[3])):
        before = nbhd.reach(axis)[0]
        starts = torch.tensor([offset[axis] + before for offset in nbhd.offsets], device=x.device)
        along.append(torch.arange(out, device=x.device)[:, None] * nbhd.stride[axis] + starts)
    return (along[0][:, None] * padded_width + along[1]).flatten(0, 1)
