"""``group_convolution`` by a grouped convolution whose groups fill whole vectors.

Runtimes compute groups of a few outputs without vectors. Some groups together, zeros between them, take several times
the products and half the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import convolution_dtype
from convattn.ops.group_convolution.inputs import GroupConvolutionInputs

VECTOR = 16
"""Channels that runtimes compute together: the lanes of AVX-512."""
MOST_TOGETHER = 4
"""Of more groups the zeros cost more than the vectors save: measured in onnxruntime and OpenVINO."""


def group_convolution(x: GroupConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.group_convolution`."""
    inputs, groups = x.weight.shape[0], x.weight.shape[4]
    maps = x.x.unflatten(1, (inputs, groups)).transpose(1, 2).flatten(1, 2)
    return of_groups(maps, x.weight, x.bias, x.steps).to(x.x.dtype)


def of_groups(maps: Tensor, weight: Tensor, bias: Tensor | None, steps: tuple[int, ...]) -> Tensor:
    """The same of maps that lie group by group, ``[B, d * T, H, W]``."""
    inputs, rows, columns, outputs, groups = map(int, weight.shape)
    together = _together(inputs, outputs, groups)
    dtype = convolution_dtype(maps)
    kernel = weight.to(dtype).permute(4, 3, 0, 1, 2).reshape(-1, together, outputs, 1, inputs, rows * columns)
    apart = torch.eye(together, dtype=dtype, device=kernel.device)[:, None, :, None, None]
    kernel = (kernel * apart).reshape(groups * outputs, together * inputs, rows, columns).contiguous()
    padding = [step * (size // 2) for step, size in zip(steps[2:], (rows, columns), strict=True)]
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(maps.to(dtype), kernel, bias, list(steps[:2]), padding, list(steps[2:]), groups // together)


def _together(inputs: int, outputs: int, groups: int) -> int:
    """How many groups are computed as one; 1 where no few fill vectors."""
    fitting = (r for r in range(1, MOST_TOGETHER + 1) if groups % r == r * inputs % VECTOR == r * outputs % VECTOR == 0)
    return next(fitting, 1)
