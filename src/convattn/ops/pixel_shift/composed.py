"""``pixel_shift_attention`` as its definition composes it: ``correlate``, a weight for each channel, ``aggregate``.

Made of operators that are differentiable to any order, it serves second derivatives; it holds a map for each offset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._checks import flat
from convattn.ops._layout import accumulation_dtype
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    dtype = accumulation_dtype(x.q.dtype)
    coefficients = dynamic_coefficients(x)
    if x.v is None:
        return coefficients.sum(2).to(x.q.dtype)
    return torch.ops.convattn.aggregate(coefficients, x.v.to(dtype), *flat(x.nbhd), "auto").to(x.q.dtype)


def dynamic_coefficients(x: PixelShiftInputs) -> Tensor:
    """What each channel's value at each offset is multiplied by, ``[B, C, D, Ho, Wo]``, in the dtype of sums."""
    dtype = accumulation_dtype(x.q.dtype)
    logits = torch.ops.convattn.correlate(x.q.to(dtype), x.k.to(dtype), *flat(x.nbhd), x.num_heads, "auto") * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(dtype)[:, :, None, None]
    by_head = x.weight.to(dtype).t().unflatten(0, (x.num_heads, -1))[..., None, None]
    return (by_head * logits[:, :, None]).flatten(1, 2)
