"""Average pooling to ``ceil(size / stride)``, as every operator's output measures."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import strided_size


def average_pool(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Means over ``stride`` by ``stride`` cells, ``[B, C, H, W]`` -> ``[B, C, ceil(H/s), ceil(W/s)]``.

    A cell that reaches beyond the map is the mean of what lies on it. By index: a pooling, as a slice with a step,
    ties an exported size to odd or even numbers.

    Example:
        >>> average_pool(torch.tensor([[[[1.0, 3.0, 5.0]]]]), (1, 2))
        tensor([[[[2., 5.]]]])
    """
    pooled = x
    for dim, step in ((2, stride[0]), (3, stride[1])):
        if step > 1:
            pooled = _pool_axis(pooled, dim, step)
    return pooled if pooled is x else pooled.contiguous(memory_format=memory_format_of(x))


def _pool_axis(x: Tensor, dim: int, step: int) -> Tensor:
    size = x.shape[dim]
    first = torch.arange(strided_size(size, step), device=x.device) * step
    total = x.index_select(dim, first)
    count = torch.ones_like(first)
    for tap in range(1, step):
        inside = first + tap < size
        taken = x.index_select(dim, torch.where(inside, first + tap, first))
        total = total + taken * _along(inside, dim).to(x.dtype)
        count = count + inside
    return total / _along(count, dim).to(x.dtype)


def _along(values: Tensor, dim: int) -> Tensor:
    """One number for each row (``dim`` 2) or column (3) of a map."""
    return values[:, None] if dim == 2 else values
