"""``correlate`` by one pass over shifted views of the padded keys per offset; nothing is unfolded."""

from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.neighborhood import Neighborhood


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    dtype = accumulation_dtype(q.dtype)
    height, width = k.shape[-2:]
    queries, padded = q.to(dtype), nbhd.pad(k.to(dtype))
    logits = q.new_empty((q.shape[0], num_heads, len(nbhd), *q.shape[-2:]))
    for j, keys in enumerate(nbhd.views(padded, height, width)):
        logits[:, :, j] = (queries * keys).unflatten(1, (num_heads, -1)).sum(2)
    return logits
