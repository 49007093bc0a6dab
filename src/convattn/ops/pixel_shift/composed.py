"""``pixel_shift_attention`` as its definition composes it: ``correlate``, a weight for each channel, ``aggregate``.

Made of operators that are differentiable to any order, it serves second derivatives; it holds a map for each offset.
"""

from __future__ import annotations

from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._products import AggregateInputs, CorrelateInputs, aggregate, correlate
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    dtype = accumulation_dtype(x.q.dtype)
    coefficients = dynamic_coefficients(x)
    if x.v is None:
        return coefficients.sum(2).to(x.q.dtype)
    return aggregate.apply(AggregateInputs(coefficients, x.v.to(dtype), x.nbhd)).to(x.q.dtype)


def dynamic_coefficients(x: PixelShiftInputs) -> Tensor:
    """What each channel's value at each offset is multiplied by, ``[B, C, D, Ho, Wo]``, in the dtype of sums."""
    dtype = accumulation_dtype(x.q.dtype)
    logits = correlate.apply(CorrelateInputs(x.q.to(dtype), x.k.to(dtype), x.nbhd, x.num_heads)) * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(dtype)[:, :, None, None]
    by_head = x.weight.to(dtype).t().unflatten(0, (x.num_heads, -1))[..., None, None]
    return (by_head * logits[:, :, None]).flatten(1, 2)
