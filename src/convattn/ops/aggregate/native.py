"""``aggregate`` by the CPU kernels of ``csrc/kernels_offsets.cpp``."""

import torch
from torch import Tensor

from convattn.ops._abi import call, float_table, geometry_of, map_of
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Neighborhood


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    values = v.float()
    shape = (*v.shape[:2], *weights.shape[-2:])
    out = torch.empty(shape, dtype=values.dtype, memory_format=memory_format_of(v))
    geometry = geometry_of(values, nbhd, weights.shape[1])
    call("convattn_aggregate", geometry, float_table(weights), map_of(values), map_of(out))
    return out.to(v.dtype)
