"""``dynamic_conv`` by a product of matrices at every pixel for each offset; nothing is unfolded.

Strides come last: slices with a step would tie an exported map to odd or even sizes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.neighborhood import Neighborhood


def dynamic_conv(x: Tensor, kernel: Tensor, nbhd: Neighborhood, groups: int) -> Tensor:
    """See :func:`convattn.ops.dynamic_conv`."""
    dtype = accumulation_dtype(x.dtype)
    height, width = x.shape[-2:]
    nbhd = nbhd.on_map(height, width)
    padded = nbhd.pad(x.to(dtype))
    by_group = kernel.unflatten(1, (groups, -1))
    out_h, out_w = nbhd.output_size(height, width)
    total = padded.new_zeros((x.shape[0], groups, by_group.shape[2], out_h, out_w))
    for d, seen in enumerate(replace(nbhd, stride=(1, 1)).views(padded, height, width)):
        inputs = nbhd.centres(seen).unflatten(1, (groups, -1))
        total = total + torch.einsum("bgihw,bgoihw->bgohw", inputs, by_group[:, :, :, :, d].to(dtype))
    return total.flatten(1, 2).to(x.dtype).contiguous(memory_format=memory_format_of(x))
