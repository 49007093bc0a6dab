"""``pixel_shift_attention`` by the CPU kernels of ``csrc/pixel_shift.h``; the gradient is the eager form's."""

from __future__ import annotations

from torch import Tensor

from convattn.ops._abi import call, float_map, float_table, geometry_of, map_of
from convattn.ops._layout import empty_channels_last
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    q = float_map(x.q)
    maps, out = [q, float_map(x.k), None if x.v is None else float_map(x.v)], empty_channels_last(q.shape, q)
    weight, bias = float_table(x.weight), None if x.bias is None else float_table(x.bias.t())
    places = [None if t is None else map_of(t) for t in maps]
    call("convattn_pixel_shift", geometry_of(x.k, x.nbhd, x.num_heads, x.scale), *places, weight, bias, map_of(out))
    return out.to(x.q.dtype)
