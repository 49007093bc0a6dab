"""``aggregate`` by one pass over shifted views of the padded values per offset; nothing is unfolded."""

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.neighborhood import Neighborhood


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    dtype = accumulation_dtype(v.dtype)
    batch, channels, height, width = v.shape
    padded, num_heads = nbhd.pad(v.to(dtype)), weights.shape[1]
    shape = (batch, channels, *weights.shape[-2:])
    total = torch.zeros(shape, dtype=dtype, device=v.device).contiguous(memory_format=memory_format_of(v))
    by_head = total.unflatten(1, (num_heads, -1))
    for j, values in enumerate(nbhd.views(padded, height, width)):
        by_head.addcmul_(weights[:, :, j, None].to(dtype), values.unflatten(1, (num_heads, -1)))
    return total.to(v.dtype)
