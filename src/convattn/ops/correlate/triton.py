"""``correlate`` on a GPU: one program for some pixels of some heads, offset by offset."""

import torch
from torch import Tensor

from convattn.ops._layout import channels_last
from convattn.ops._triton import Blocks, map_strides, tables
from convattn.ops.neighborhood import Neighborhood


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    from convattn.ops.correlate.triton_kernels import correlate_kernel

    batch, channels, out_h, out_w = q.shape
    out = q.new_empty((batch, num_heads, len(nbhd), out_h, out_w))
    if out.numel() == 0 or channels == 0:
        return out.zero_()
    q, k = channels_last(q), channels_last(k)
    t = tables(nbhd, (k.shape[2], k.shape[3]), k.device)
    cut = Blocks.choose(num_heads, channels // num_heads)
    blocks, tiles = cut.grid(num_heads, out_h, out_w)
    with torch.cuda.device_of(q):
        correlate_kernel[(batch * blocks * tiles,)](
            *(q, k, out, *t.gathered),
            *map_strides(q),
            *map_strides(k),
            *(num_heads, blocks, tiles, out_h, out_w, len(nbhd), *nbhd.stride),
            **cut.constants(channels // num_heads),
        )
    return out
