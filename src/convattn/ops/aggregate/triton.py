"""``aggregate`` on a GPU: one program for some pixels of some heads, offset by offset."""

import torch
from torch import Tensor

from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import Blocks, map_strides, tables
from convattn.ops.neighborhood import Neighborhood


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    from convattn.ops.aggregate.triton_kernels import aggregate_kernel

    batch, channels, height, width = v.shape
    num_heads, (out_h, out_w) = weights.shape[1], weights.shape[-2:]
    out = empty_channels_last((batch, channels, out_h, out_w), v)
    if out.numel() == 0:
        return out
    weights, v, head_dim = weights.contiguous(), channels_last(v), channels // num_heads
    t = tables(nbhd, (height, width), v.device)
    cut = Blocks.choose(num_heads, head_dim)
    blocks, tiles = cut.grid(num_heads, out_h, out_w)
    with torch.cuda.device_of(v):
        aggregate_kernel[(batch * blocks * tiles, -(-head_dim // cut.channels))](
            *(weights, v, out, *t.gathered),
            *map_strides(v),
            *map_strides(out),
            *(num_heads, blocks, tiles, out_h, out_w, len(nbhd), *nbhd.stride),
            **cut.constants(head_dim),
        )
    return out
