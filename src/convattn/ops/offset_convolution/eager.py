"""``offset_convolution`` by the shifted maps of some offsets side by side and one matrix product for these."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import accumulation_dtype, convolution_dtype
from convattn.ops._recording import is_exporting
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.offset_convolution.inputs import OffsetConvolutionInputs

OFFSETS_AT_ONCE = 8
"""Enough for large products; a map is held for each, and sums of fewer terms round less."""


def offset_convolution(x: OffsetConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.offset_convolution`; made of differentiable operators that ONNX has too."""
    x = x.on_its_map()
    if is_exporting() and x.nbhd.offsets == ((0, 0),):
        return _pointwise(x)
    of_offsets = _at_centres if x.nbhd.offsets == ((0, 0),) else _at_offsets
    out = of_offsets(x.x, x.weight, x.nbhd)
    size = (x.x.shape[0], *x.nbhd.output_size(x.x.shape[2], x.x.shape[3]))
    assembled = out.permute(1, 0, 2).flatten(1).unflatten(0, size).permute(0, 3, 1, 2)
    return assembled if x.bias is None else assembled + x.bias.to(x.x.dtype)[:, None, None]


def _product(pixels: Tensor, weight: Tensor) -> Tensor:
    """``[P, C] x [G, C, V]`` as ``[G, P, V]``; in a recorded program as one matrix, since OpenVINO takes no others."""
    if not is_exporting():
        return torch.matmul(pixels, weight)
    wide = weight.transpose(0, 1).flatten(1)
    return torch.matmul(pixels, wide).unflatten(1, (weight.shape[0], -1)).transpose(0, 1)


def _pointwise(x: OffsetConvolutionInputs) -> Tensor:
    """A 1x1 convolution as one: runtimes keep the map as it lies between two convolutions."""
    dtype = convolution_dtype(x.x)
    weight, bias = x.weight.to(dtype).transpose(1, 2).flatten(0, 1), None if x.bias is None else x.bias.to(dtype)
    return F.conv2d(x.x.to(dtype), weight[..., None, None], bias, list(x.nbhd.stride)).to(x.x.dtype)


def _at_centres(x: Tensor, weight: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[G, B * Ho * Wo, V]`` of a 1x1 convolution: no maps are copied."""
    return _product(nbhd.centres(x).permute(0, 2, 3, 1).flatten(0, 2), weight.to(x.dtype))


def _at_offsets(x: Tensor, weight: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[G, B * Ho * Wo, V]``."""
    inputs, padded = x.shape[1], nbhd.pad(x).permute(0, 2, 3, 1)
    pixels, weight = padded.flatten(1, 2), weight.to(x.dtype)
    places = _places(nbhd, x, padded.shape[2])

    def products(first: int) -> Tensor:
        taken = places[:, first : first + OFFSETS_AT_ONCE]
        seen = pixels.index_select(1, taken.flatten()).unflatten(1, taken.shape).flatten(2).flatten(0, 1)
        return _product(seen, weight[:, first * inputs : (first + taken.shape[1]) * inputs])

    return reduce(torch.add, map(products, range(0, len(nbhd), OFFSETS_AT_ONCE)))


def offset_convolution_backward(grad: Tensor, inputs: OffsetConvolutionInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`OffsetConvolutionInputs.tensors`, offset by offset, so that no map is held for each."""
    x, weight, bias, nbhd = inputs
    size, dtype, blocks, inner = x.shape[2:], accumulation_dtype(x.dtype), weight.shape[0], x.shape[1]
    padded = nbhd.pad(x.to(dtype))
    dpadded, dweight = torch.zeros_like(padded), torch.empty(weight.shape, dtype=dtype, device=weight.device)
    toward = grad.to(dtype).permute(0, 2, 3, 1).flatten(0, 2)  # [B * Ho * Wo, G * V]
    views = zip(nbhd.views(padded, *size), nbhd.views(dpadded, *size), strict=True)
    for d, (seen, dseen) in enumerate(views):
        rows = slice(d * inner, (d + 1) * inner)
        products = seen.permute(1, 0, 2, 3).flatten(1) @ toward
        dweight[:, rows] = products.unflatten(1, (blocks, -1)).transpose(0, 1)
        from_outputs = toward @ weight[:, rows].to(dtype).transpose(1, 2).flatten(0, 1)
        dseen += from_outputs.unflatten(0, (x.shape[0], *dseen.shape[2:])).permute(0, 3, 1, 2)
    return nbhd.unpad(dpadded, *size), dweight, None if bias is None else grad.sum((0, 2, 3))


def _places(nbhd: Neighborhood, x: Tensor, padded_width: int) -> Tensor:
    """``[Ho * Wo, D]``: where every output's neighbours lie among the pixels of the padded map."""
    along = []
    for axis, out in enumerate(nbhd.output_size(x.shape[2], x.shape[3])):
        before = nbhd.reach(axis)[0]
        starts = torch.tensor([offset[axis] + before for offset in nbhd.offsets], device=x.device)
        along.append(torch.arange(out, device=x.device)[:, None] * nbhd.stride[axis] + starts)
    return (along[0][:, None] * padded_width + along[1]).flatten(0, 1)
