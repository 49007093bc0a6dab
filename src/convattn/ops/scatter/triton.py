"""``scatter`` on a GPU, written as a gather: one program for some pixels of some heads, without atomics."""

import torch
from torch import Tensor

from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import Blocks, map_strides, tables
from convattn.ops.neighborhood import Neighborhood


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    from convattn.ops.scatter.triton_kernels import scatter_kernel

    batch, channels, out_h, out_w = u.shape
    num_heads, (height, width) = weights.shape[1], size
    out = empty_channels_last((batch, channels, height, width), u)
    if out.numel() == 0:
        return out
    weights, u, head_dim = weights.contiguous(), channels_last(u), channels // num_heads
    t = tables(nbhd, (height, width), u.device)
    cut = Blocks.choose(num_heads, head_dim)
    blocks, tiles = cut.grid(num_heads, height, width)
    with torch.cuda.device_of(u):
        scatter_kernel[(batch * blocks * tiles, -(-head_dim // cut.channels))](
            *(weights, u, out, *t.scattered),
            *map_strides(u),
            *map_strides(out),
            *(num_heads, blocks, tiles, height, width, out_h, out_w, len(nbhd), *t.folds),
            **cut.constants(head_dim),
        )
    return out
