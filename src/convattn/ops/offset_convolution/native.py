"""``offset_convolution`` by the CPU kernels of ``csrc/offset_conv.h``, which skip the zeros beyond the border."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._abi import call, map_of, offset_conv_of
from convattn.ops.neighborhood import Neighborhood


def offset_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.offset_convolution`."""
    maps = x.float()
    maps = maps if maps.stride(1) == 1 else maps.contiguous(memory_format=torch.channels_last)
    shape = (x.shape[0], weight.shape[0] * weight.shape[2], *nbhd.output_size(x.shape[2], x.shape[3]))
    out = torch.empty(shape, memory_format=torch.channels_last, dtype=torch.float32)
    tables = (weight.float().contiguous(), None if bias is None else bias.float().contiguous())
    call("convattn_offset_conv", offset_conv_of(nbhd, maps, weight), map_of(maps), *tables, map_of(out))
    return out.to(x.dtype)
