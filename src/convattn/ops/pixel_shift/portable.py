"""``pixel_shift_attention`` out of standard operators of torch alone.

Neighbours of many channels are gathered pixel by pixel and multiplied as matrices: runtimes then run a dozen steps, not
six for each offset. Those of few channels are read offset by offset, since a gather of single numbers is slow.
"""

from __future__ import annotations

from functools import reduce
from itertools import repeat

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._portable import neighbourhoods, neighbours, pixels_of
from convattn.ops._recording import map_size
from convattn.ops.pixel_shift.inputs import PixelShiftInputs

LEAST_CHANNELS = 16
"""Of a head, to gather them: a cache line of numbers."""


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    form = _by_pixels if int(x.weight.shape[1]) >= LEAST_CHANNELS * x.num_heads else _by_offsets
    return form(x).to(x.q.dtype)


def _by_pixels(x: PixelShiftInputs) -> Tensor:
    dtype, heads, size = accumulation_dtype(x.q.dtype), x.num_heads, map_size(x.q)
    weights = x.weight.to(dtype).unflatten(1, (heads, -1)).transpose(0, 1)  # [N, D, d]
    q = pixels_of(x.q.to(dtype) * x.scale, heads)
    found = (neighbourhoods(x.nbhd, x.k.to(dtype), heads) @ q[..., None])[..., 0]  # [B, N, P, D]
    if x.bias is not None:
        found = found + x.bias.to(dtype)[:, None]
    if x.v is None:
        out = found @ weights
    else:
        weighted = neighbourhoods(x.nbhd, x.v.to(dtype), heads) * weights[:, None]
        out = (found[..., None, :] @ weighted)[..., 0, :]
    return out.transpose(-2, -1).reshape(-1, x.weight.shape[1], *size)


def _by_offsets(x: PixelShiftInputs) -> Tensor:
    dtype, heads = accumulation_dtype(x.q.dtype), x.num_heads
    q, k = x.q.to(dtype) * x.scale, x.k.to(dtype)
    weights = x.weight.to(dtype).unflatten(1, (heads, -1))[..., None, None]
    biases = repeat(None) if x.bias is None else x.bias.to(dtype).t()[..., None, None, None]
    values = repeat(None) if x.v is None else neighbours(x.nbhd, x.v.to(dtype))

    def term(weight: Tensor, keys: Tensor, bias: Tensor | None, shifted: Tensor | None) -> Tensor:
        found = (q * keys).unflatten(1, (heads, -1)).sum(2, keepdim=True)
        found = weight * (found if bias is None else found + bias)
        return found if shifted is None else found * shifted.unflatten(1, (heads, -1))

    return reduce(torch.add, map(term, weights, neighbours(x.nbhd, k), biases, values)).flatten(1, 2)
