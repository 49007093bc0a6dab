"""``correlate`` by the CPU kernels of ``csrc/kernels_offsets.cpp``."""

from torch import Tensor

from convattn.ops._abi import call, geometry_of, map_of
from convattn.ops.neighborhood import Neighborhood


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    """See :func:`convattn.ops.correlate`."""
    queries, keys = q.float(), k.float()
    logits = queries.new_empty((q.shape[0], num_heads, len(nbhd), *q.shape[-2:]))
    call("convattn_correlate", geometry_of(keys, nbhd, num_heads), map_of(queries), map_of(keys), logits)
    return logits.to(q.dtype)
