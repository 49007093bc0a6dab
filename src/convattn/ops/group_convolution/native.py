"""``group_convolution`` by the CPU kernels of ``csrc/group_conv.h``: 3x3, stride 1 or 2."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._abi import GroupConv, call, map_of


def not_supported_reasons(
    x: Tensor | None = None, weight: Tensor | None = None, steps: tuple[int, ...] = (1, 1, 1, 1)
) -> list[str]:
    """Why the kernels cannot run here, or not on these inputs."""
    reasons = _dispatch.native_reasons(x, weight)
    if weight is not None and tuple(weight.shape[1:3]) != (3, 3):
        reasons.append(f"needs a 3x3 kernel, got {list(weight.shape[1:3])}")
    if steps not in ((1, 1, 1, 1), (2, 2, 1, 1)):
        reasons.append(f"needs stride 1 or 2 without dilation, got stride {steps[:2]}, dilation {steps[2:]}")
    return reasons


def group_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, steps: tuple[int, ...]) -> Tensor:
    """See :func:`convattn.ops.group_convolution`."""
    maps, stride = _channels_next(x), steps[0]
    size = ((length - 1) // stride + 1 for length in x.shape[2:])
    out = torch.empty(
        (x.shape[0], weight.shape[3] * weight.shape[4], *size), memory_format=torch.channels_last, dtype=torch.float32
    )
    tables = (_float(weight), None if bias is None else _float(bias))
    call("convattn_group_conv_forward", _geometry(maps, weight, stride), map_of(maps), *tables, map_of(out))
    return out.to(x.dtype)


def group_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, steps: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    maps, dout = _channels_next(x), _channels_next(grad)
    dx = torch.empty(maps.shape, memory_format=torch.channels_last)
    geometry = _geometry(maps, weight, steps[0])
    dweight = torch.zeros((geometry.threads, *weight.shape), dtype=torch.float64)
    arguments = (map_of(maps), _float(weight), map_of(dout), map_of(dx), dweight)
    call("convattn_group_conv_backward", geometry, *arguments)
    return dx.to(x.dtype), dweight.sum(0)


def _geometry(x: Tensor, weight: Tensor, stride: int) -> GroupConv:
    inputs, _, _, outputs, groups = weight.shape
    return GroupConv(x.shape[0], x.shape[2], x.shape[3], groups, inputs, outputs, stride, torch.get_num_threads())


def _channels_next(x: Tensor) -> Tensor:
    """In float32, the channels of a pixel next to each other; a slice of such a map is one too."""
    x = x.float()
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _float(x: Tensor) -> Tensor:
    return x.float().contiguous()
