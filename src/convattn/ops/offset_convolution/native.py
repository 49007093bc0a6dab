"""``offset_convolution`` by the CPU kernels of ``csrc/offset_conv.h``, which skip the zeros beyond the border."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._abi import call, map_of, offset_conv_of
from convattn.ops._layout import channels_next
from convattn.ops.offset_convolution.inputs import OffsetConvolutionInputs


def offset_convolution(x: OffsetConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.offset_convolution`."""
    maps = channels_next(x.x)
    out = torch.empty(x.output_shape, memory_format=torch.channels_last, dtype=torch.float32)
    tables = (x.weight.float().contiguous(), None if x.bias is None else x.bias.float().contiguous())
    call("convattn_offset_conv", offset_conv_of(x.nbhd, maps, x.weight), map_of(maps), *tables, map_of(out))
    return out.to(x.x.dtype)
