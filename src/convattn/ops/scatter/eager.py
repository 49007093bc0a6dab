"""``scatter`` by one pass over shifted views of the padded sum per offset; nothing is unfolded."""

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.neighborhood import Neighborhood


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    dtype = accumulation_dtype(u.dtype)
    (height, width), num_heads = size, weights.shape[1]
    (top, bottom), (left, right) = nbhd.reach(0), nbhd.reach(1)
    shape = (*u.shape[:2], height + top + bottom, width + left + right)
    padded = torch.zeros(shape, dtype=dtype, device=u.device).contiguous(memory_format=memory_format_of(u))
    by_head = u.to(dtype).unflatten(1, (num_heads, -1))
    for j, target in enumerate(nbhd.views(padded.unflatten(1, (num_heads, -1)), height, width)):
        target.addcmul_(weights[:, :, j, None].to(dtype), by_head)
    return nbhd.unpad(padded, height, width).to(u.dtype).contiguous(memory_format=memory_format_of(u))
