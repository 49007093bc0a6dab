"""``scatter`` on a GPU, written as a gather: one program for some pixels of some heads, without atomics."""

from torch import Tensor

from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import run_over_heads, tables
from convattn.ops.neighborhood import Neighborhood


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    """See :func:`convattn.ops.scatter`."""
    from convattn.ops.scatter.triton_kernels import scatter_kernel

    out = empty_channels_last((*u.shape[:2], *size), u)
    if out.numel():
        tensors, index = (weights.contiguous(), channels_last(u), out), tables(nbhd, size, u.device)
        sizes = (u.shape[2], u.shape[3], len(nbhd), *index.folds)
        run_over_heads(scatter_kernel, tensors, index.scattered, weights.shape[1], *sizes)
    return out
