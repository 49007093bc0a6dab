"""``pixel_shift_attention`` by the CPU kernels of ``csrc/pixel_shift.h``; the gradient is the eager form's."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._abi import call, geometry_of, map_of
from convattn.ops._layout import channels_next
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    maps = [None if t is None else channels_next(t) for t in (x.q, x.k, x.v)]
    out = torch.empty(x.q.shape, memory_format=torch.channels_last, dtype=torch.float32)
    weight, bias = x.weight.float().contiguous(), None if x.bias is None else x.bias.float().t().contiguous()
    places = [None if t is None else map_of(t) for t in maps]
    call("convattn_pixel_shift", geometry_of(x.k, x.nbhd, x.num_heads, x.scale), *places, weight, bias, map_of(out))
    return out.to(x.q.dtype)
