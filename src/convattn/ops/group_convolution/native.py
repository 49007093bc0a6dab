"""``group_convolution`` by the CPU kernels of ``csrc/group_conv.h``: 3x3, stride 1 or 2."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._abi import GroupConv, call, float_map, float_table, map_of
from convattn.ops._layout import empty_channels_last
from convattn.ops.group_convolution.inputs import GroupConvolutionInputs


def not_supported_reasons(x: GroupConvolutionInputs | None = None) -> list[str]:
    """Why the kernels cannot run here, or not on these inputs."""
    if x is None:
        return _dispatch.native_reasons()
    reasons = _dispatch.native_reasons(*x.tensors)
    if tuple(x.weight.shape[1:3]) != (3, 3):
        reasons.append(f"needs a 3x3 kernel, got {list(x.weight.shape[1:3])}")
    if tuple(x.steps) not in ((1, 1, 1, 1), (2, 2, 1, 1)):
        reasons.append(f"needs stride 1 or 2 without dilation, got stride {x.steps[:2]}, dilation {x.steps[2:]}")
    return reasons


def group_convolution(x: GroupConvolutionInputs) -> Tensor:
    """See :func:`convattn.ops.group_convolution`."""
    maps, weight = float_map(x.x), x.weight
    out, tables = empty_channels_last(x.output_shape, maps), (float_table(weight), float_table(x.bias))
    call("convattn_group_conv_forward", _geometry(maps, weight, x.steps[0]), map_of(maps), *tables, map_of(out))
    return out.to(x.x.dtype)


def group_convolution_backward(grad: Tensor, x: GroupConvolutionInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`GroupConvolutionInputs.tensors`."""
    maps, dout = float_map(x.x), float_map(grad)
    dx = empty_channels_last(maps.shape, maps)
    geometry = _geometry(maps, x.weight, x.steps[0])
    dweight = torch.zeros((geometry.threads, *x.weight.shape), dtype=torch.float64)
    arguments = (map_of(maps), float_table(x.weight), map_of(dout), map_of(dx), dweight)
    call("convattn_group_conv_backward", geometry, *arguments)
    return dx, dweight.sum(0), None if x.bias is None else grad.sum((0, 2, 3))


def _geometry(x: Tensor, weight: Tensor, stride: int) -> GroupConv:
    inputs, _, _, outputs, groups = weight.shape
    return GroupConv(x.shape[0], x.shape[2], x.shape[3], groups, inputs, outputs, stride, torch.get_num_threads())
