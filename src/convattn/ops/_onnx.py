"""The operators out of standard ones, for ``torch.onnx.export``: ONNX has none of theirs.

A few gathers and sums for each operator, for any size of map: they hold a map for each offset, as ONNX runtimes would
for the same operators written offset by offset, in a hundredth of the nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def neighbours(nbhd: Neighborhood, x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, D, Ho, Wo]``: every output pixel's neighbour at every offset."""
    height, width = x.shape[-2:]
    padded, sizes = nbhd.pad(x), nbhd.output_size(height, width)
    places = []
    for axis in (0, 1):
        before = nbhd.reach(axis)[0]
        starts = torch.tensor([offset[axis] + before for offset in nbhd.offsets], device=x.device)
        places.append(starts[:, None] + torch.arange(sizes[axis], device=x.device) * nbhd.stride[axis])
    index = places[0][:, :, None] * padded.shape[-1] + places[1][:, None]
    return padded.flatten(2).index_select(2, index.flatten()).unflatten(2, (len(nbhd), *sizes))


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    dtype = accumulation_dtype(q.dtype)
    products = q.to(dtype)[:, :, None] * neighbours(nbhd, k.to(dtype))
    return products.unflatten(1, (num_heads, -1)).sum(2).to(q.dtype)


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    dtype = accumulation_dtype(v.dtype)
    values = neighbours(nbhd, v.to(dtype)).unflatten(1, (weights.shape[1], -1))
    return (weights.to(dtype)[:, :, None] * values).sum(3).flatten(1, 2).to(v.dtype)


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    q, k, v = (t.to(accumulation_dtype(t.dtype)) for t in (x.q, x.k, x.v))
    logits, vectors = correlate(q, k, x.nbhd, x.num_heads), x.vectors(q)
    if vectors is not None:
        logits = logits + torch.einsum("bnchw,nmc->bnmhw", q.unflatten(1, (x.num_heads, -1)), vectors)
    logits = logits * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(q.dtype)[..., None, None]
    return aggregate(logits.softmax(2), v, x.nbhd).to(x.q.dtype)


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    dtype = accumulation_dtype(x.q.dtype)
    logits = correlate(x.q.to(dtype), x.k.to(dtype), x.nbhd, x.num_heads) * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(dtype)[..., None, None]
    weight = x.weight.to(dtype).t().unflatten(0, (x.num_heads, -1))[..., None, None]
    if x.v is None:
        return (logits[:, :, None] * weight).sum(3).flatten(1, 2).to(x.q.dtype)
    values = neighbours(x.nbhd, x.v.to(dtype)).unflatten(1, (x.num_heads, -1)) * weight
    return (logits[:, :, None] * values).sum(3).flatten(1, 2).to(x.q.dtype)
