"""``aggregate`` on a GPU: one program for some pixels of some heads, offset by offset."""

from torch import Tensor

from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import run_over_heads, tables
from convattn.ops.neighborhood import Neighborhood


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """See :func:`convattn.ops.aggregate`."""
    from convattn.ops.aggregate.triton_kernels import aggregate_kernel

    out = empty_channels_last((*v.shape[:2], *weights.shape[-2:]), v)
    if out.numel():
        tensors, index = (weights.contiguous(), channels_last(v), out), tables(nbhd, (v.shape[2], v.shape[3]), v.device)
        run_over_heads(aggregate_kernel, tensors, index.gathered, weights.shape[1], len(nbhd), *nbhd.stride)
    return out
