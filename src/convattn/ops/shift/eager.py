"""Shifts by views of a zero-padded map; their sum also as one convolution."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import convolution_dtype, memory_format_of
from convattn.ops.neighborhood import Neighborhood, near_step, same_padding


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """See :func:`convattn.ops.shift`."""
    height, width = x.shape[-2:]
    dy, dx = (_near_shift(shift, size) for shift, size in ((dy, height), (dx, width)))
    padded = F.pad(x, (abs(dx), abs(dx), abs(dy), abs(dy)))
    return padded.narrow(-2, abs(dy) + dy, height).narrow(-1, abs(dx) + dx, width)


def _near_shift(shift: int, size: int) -> int:
    """A shift by no more than the map, beyond which only zeros are left."""
    near = near_step(abs(shift), size)
    return near if shift > 0 else -near


def one_hot_kernel(kernel_size: tuple[int, int], like: Tensor) -> Tensor:
    """Eq. 15 for every tap: ``[k*k, k, k]``, map m's kernel is one at its own tap and zero elsewhere."""
    taps = kernel_size[0] * kernel_size[1]
    return torch.eye(taps, dtype=like.dtype, device=like.device).unflatten(1, kernel_size)


def by_tensor_shifts(x: Tensor, nbhd: Neighborhood, groups: int) -> Tensor:
    """Fig. 3a. Strides last: slices with a step would tie an exported map to odd or even sizes."""
    nbhd = nbhd.on_map(x.shape[-2], x.shape[-1])
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
    height, width = x.shape[-2:]
    stride = near_step(stride[0], height), near_step(stride[1], width)
    dilation = near_step(dilation[0], height), near_step(dilation[1], width)
    padding = same_padding(weight.shape[2:], dilation)
    dtype = convolution_dtype(x)
    # contiguous: of a permuted kernel, a channels_last one too, torch may find wrong numbers in any dtype
    out = F.conv2d(x.to(dtype), weight.to(dtype).contiguous(), None, stride, padding, dilation, groups).to(x.dtype)
    last = torch.channels_last in (memory_format_of(x), memory_format_of(weight))  # then so is conv2d's output
    return out.contiguous(memory_format=torch.channels_last) if last else out
