"""``offset_convolution`` by the CPU kernels of ``csrc/offset_conv.h``, which skip the zeros beyond the border."""

from __future__ import annotations

from torch import Tensor

from convattn.ops._abi import call, float_map, float_table, map_of, offset_conv_of
from convattn.ops._layout import empty_channels_last
from convattn.ops.offset_convolution.inputs import OffsetConvolutionInputs


def offset_convolution(x: OffsetConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.offset_convolution`."""
    maps = float_map(x.x)
    out, tables = empty_channels_last(x.output_shape, maps), (float_table(x.weight), float_table(x.bias))
    call("convattn_offset_conv", offset_conv_of(x.nbhd, maps, x.weight), map_of(maps), *tables, map_of(out))
    return out.to(x.x.dtype)
