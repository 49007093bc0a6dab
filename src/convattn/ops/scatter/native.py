"""``scatter`` by the CPU kernels of ``csrc/kernels_offsets.cpp``."""

from torch import Tensor

from convattn.ops._abi import call, float_table, map_of, offsets_of
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Neighborhood


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    source = u.float()
    out = source.new_zeros((*u.shape[:2], *size)).contiguous(memory_format=memory_format_of(u))
    geometry = offsets_of(nbhd, u.shape[0], u.shape[1], weights.shape[1], size)
    call("convattn_scatter", geometry, float_table(weights), map_of(source), map_of(out))
    return out.to(u.dtype)
