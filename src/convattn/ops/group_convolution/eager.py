"""``group_convolution`` by torch's grouped convolution, on channels brought group by group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import convolution_dtype
from convattn.ops.group_convolution.inputs import GroupConvolutionInputs
from convattn.ops.neighborhood import same_padding


def group_convolution(x: GroupConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.group_convolution`; made of differentiable operators that ONNX has too."""
    maps, kernel, options = _grouped(x)
    return F.conv2d(maps, kernel, None if x.bias is None else x.bias.to(maps.dtype), *options).to(x.x.dtype)


def group_convolution_backward(grad: Tensor, x: GroupConvolutionInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`GroupConvolutionInputs.tensors`."""
    maps, kernel, (stride, padding, dilation, groups) = _grouped(x)
    dmaps, dkernel, _ = torch.ops.aten.convolution_backward(
        grad.to(maps.dtype),
        maps,
        kernel,
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [True, True, False],
    )
    inputs, _, _, outputs, _ = x.weight.shape
    dx = dmaps.unflatten(1, (groups, inputs)).transpose(1, 2).flatten(1, 2)
    dweight = dkernel.unflatten(0, (groups, outputs)).permute(2, 3, 4, 1, 0)
    return dx, dweight, None if x.bias is None else grad.sum((0, 2, 3))


def _grouped(x: GroupConvolutionInputs) -> tuple[Tensor, Tensor, tuple[list[int], list[int], list[int], int]]:
    """Maps and weights group by group, and what ``conv2d`` takes after the bias.

    The kernel lies in order: of a permuted one torch may find a wrong gradient, or none.
    """
    weight, steps = x.weight, x.steps
    inputs, groups = weight.shape[0], weight.shape[4]
    maps = x.x.unflatten(1, (inputs, groups)).transpose(1, 2).flatten(1, 2)
    stride, dilation = list(steps[:2]), list(steps[2:])
    padding = list(same_padding(weight.shape[1:3], dilation))
    dtype = convolution_dtype(x.x)
    kernel = weight.to(dtype).permute(4, 3, 0, 1, 2).flatten(0, 1).contiguous()
    return maps.to(dtype), kernel, (stride, padding, dilation, groups)
