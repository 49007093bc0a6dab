"""``pixel_shift_attention`` out of standard operators of torch alone, offset by offset."""

from __future__ import annotations

from functools import reduce
from itertools import repeat

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._portable import neighbours
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    dtype, heads = accumulation_dtype(x.q.dtype), x.num_heads
    q, k = x.q.to(dtype) * x.scale, x.k.to(dtype)
    weights = x.weight.to(dtype).unflatten(1, (heads, -1))[..., None, None]
    biases = repeat(None) if x.bias is None else x.bias.to(dtype).t()[..., None, None, None]
    values = repeat(None) if x.v is None else neighbours(x.nbhd, x.v.to(dtype))

    def term(weight: Tensor, keys: Tensor, bias: Tensor | None, shifted: Tensor | None) -> Tensor:
        found = (q * keys).unflatten(1, (heads, -1)).sum(2, keepdim=True)
        found = weight * (found if bias is None else found + bias)
        return found if shifted is None else found * shifted.unflatten(1, (heads, -1))

    terms = map(term, weights, neighbours(x.nbhd, k), biases, values)
    return reduce(torch.add, terms).flatten(1, 2).to(x.q.dtype)
