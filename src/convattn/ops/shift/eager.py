"""Shifts by views of a zero-padded map; their sum also as one convolution."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """See :func:`convattn.ops.shift`."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (abs(dx), abs(dx), abs(dy), abs(dy)))
    return padded.narrow(-2, abs(dy) + dy, height).narrow(-1, abs(dx) + dx, width)


def one_hot_kernel(kernel_size: tuple[int, int], like: Tensor) -> Tensor:
    """Eq. 15 for every tap: ``[k*k, k, k]``, map m's kernel is one at its own tap and zero elsewhere."""
    taps = kernel_size[0] * kernel_size[1]
    return torch.eye(taps, dtype=like.dtype, device=like.device).unflatten(1, kernel_size)


def by_tensor_shifts(x: Tensor, nbhd: Neighborhood, groups: int) -> Tensor:
    """Fig. 3a. Strides last: slices with a step would tie an exported map to odd or even sizes."""
    dense = replace(nbhd, stride=(1, 1))
    (top, bottom), (left, right) = nbhd.reach(0), nbhd.reach(1)
    height, width = x.shape[-2:]
    maps = F.pad(x, (left, right, top, bottom)).unflatten(1, (groups, len(nbhd)))
    views = [view[:, :, m] for m, view in enumerate(dense.views(maps, height, width))]
    total = views[0]
    for view in views[1:]:
        total = total + view
    return nbhd.centres(total)


def by_convolution(
    x: Tensor, weight: Tensor, groups: int, stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Fig. 3b and 3c: one convolution, padded so that the output measures ``ceil(H/s)``."""
    padding = (dilation[0] * (weight.shape[2] // 2), dilation[1] * (weight.shape[3] // 2))
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)
