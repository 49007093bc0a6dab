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
FILLING = 0.6
"""To what part of the products filling up has to come to be worth its two copies: measured in onnxruntime."""


def group_convolution(x: GroupConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.group_convolution`."""
    maps = by_group(x.x, int(x.weight.shape[0]), int(x.weight.shape[4]))
    return of_groups(maps, x.weight, x.bias, x.steps).to(x.x.dtype)


def by_group(x: Tensor, inputs: int, groups: int) -> Tensor:
    """Maps ``[B, T * d, H, W]`` group by group, ``[B, d * T, H, W]``."""
    return x if inputs == 1 or groups == 1 else x.unflatten(1, (inputs, groups)).transpose(1, 2).flatten(1, 2)


def of_groups(maps: Tensor, weight: Tensor, bias: Tensor | None, steps: tuple[int, ...]) -> Tensor:
    """The same of maps that lie group by group, ``[B, d * T, H, W]``."""
    inputs, rows, columns, outputs, groups = map(int, weight.shape)
    together, more_inputs, more_outputs = _vectors(inputs, outputs, groups)
    number, size = groups // together, (together * outputs, together * inputs, rows, columns)
    dtype = convolution_dtype(maps)
    kernel = weight.to(dtype).permute(4, 3, 0, 1, 2).reshape(-1, together, outputs, 1, inputs, rows * columns)
    apart = torch.eye(together, dtype=dtype, device=kernel.device)[:, None, :, None, None]
    kernel = (kernel * apart).reshape(number, *size)
    maps, bias = maps.to(dtype), None if bias is None else bias.to(dtype)
    if more_inputs or more_outputs:
        kernel = F.pad(kernel, (0, 0, 0, 0, 0, more_inputs, 0, more_outputs))
        maps = F.pad(maps.unflatten(1, (number, size[1])), (0, 0, 0, 0, 0, more_inputs)).flatten(1, 2)
        bias = None if bias is None else F.pad(bias.view(number, size[0]), (0, more_outputs)).flatten()
    # numbers: the shape of a kernel that was filled up is not known to every exporter
    kernel = kernel.reshape(number * (size[0] + more_outputs), size[1] + more_inputs, rows, columns).contiguous()
    padding = [step * (taps // 2) for step, taps in zip(steps[2:], size[2:], strict=True)]
    out = F.conv2d(maps, kernel, bias, list(steps[:2]), padding, list(steps[2:]), number)
    return out.unflatten(1, (number, -1))[:, :, : size[0]].flatten(1, 2) if more_outputs else out


def _vectors(inputs: int, outputs: int, groups: int) -> tuple[int, int, int]:
    """How many groups are computed as one, and by how many zeros their inputs and outputs are filled up to vectors.

    One and none where no few groups fill vectors: there filling up was never faster.

    Example:
        >>> _vectors(12, 4, 16), _vectors(36, 12, 32), _vectors(9, 3, 32)
        ((4, 0, 0), (1, 12, 4), (1, 0, 0))
    """
    choices = {
        r: (-(r * inputs) % VECTOR, -(r * outputs) % VECTOR) for r in range(1, MOST_TOGETHER + 1) if groups % r == 0
    }
    products = {r: (r * inputs + more[0]) * (r * outputs + more[1]) / r for r, more in choices.items()}
    fitting = next((r for r, more in choices.items() if more == (0, 0)), None)
    if fitting is None:
        return 1, 0, 0
    least = min(products, key=lambda r: products[r])
    r = least if products[least] < FILLING * products[fitting] else fitting
    return r, *choices[r]
