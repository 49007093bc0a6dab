"""``pixel_shift_attention`` by the CPU kernels of ``csrc/pixel_shift.h`` and ``csrc/pixel_shift_backward.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._abi import Map, call, float_map, float_table, geometry_of, map_of
from convattn.ops._layout import empty_channels_last
from convattn.ops.pixel_shift.inputs import PixelShiftInputs


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    q = float_map(x.q)
    maps, out = [q, float_map(x.k), None if x.v is None else float_map(x.v)], empty_channels_last(q.shape, q)
    geometry = geometry_of(x.k, x.nbhd, x.num_heads, x.scale)
    call("convattn_pixel_shift", geometry, *_places(*maps), *_tables(x), map_of(out))
    return out.to(x.q.dtype)


def pixel_shift_attention_backward(grad: Tensor, x: PixelShiftInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`PixelShiftInputs.tensors`."""
    maps = [None if t is None else float_map(t) for t in (x.q, x.k, x.v)]
    of_output = float_map(grad)
    found = [None if t is None else torch.zeros_like(t, memory_format=torch.channels_last) for t in maps]
    weight, bias = _tables(x)
    dweight = torch.zeros((x.q.shape[0], *weight.shape), dtype=torch.float64)
    dbias = None if bias is None else torch.zeros((x.q.shape[0], *bias.shape), dtype=torch.float64)
    geometry = geometry_of(x.k, x.nbhd, x.num_heads, x.scale)
    places = [*_places(*maps), weight, bias, map_of(of_output), *_places(*found)]
    call("convattn_pixel_shift_backward", geometry, *places, dweight, dbias)
    return *found, dweight.sum(0), None if dbias is None else dbias.sum(0).t()


def _tables(x: PixelShiftInputs) -> tuple[Tensor, Tensor | None]:
    """The weights ``[D, C]`` and the biases ``[D, N]``."""
    return float_table(x.weight), None if x.bias is None else float_table(x.bias.t())


def _places(*maps: Tensor | None) -> list[Map | None]:
    return [None if x is None else map_of(x) for x in maps]
