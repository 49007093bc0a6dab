"""``acmix`` out of a 1x1 convolution, ``attend`` and ``group_convolution``: any device, dtype and shape.

``acmix`` is differentiable as often as needed; ``acmix_backward`` writes its gradient out, for use inside an operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.acmix.inputs import AcmixInputs, coordinates, linear_position
from convattn.ops.attend import operator as attend_operator
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.group_convolution import operator as group_operator
from convattn.ops.group_convolution.inputs import GroupConvolutionInputs


def acmix(x: AcmixInputs) -> Tensor:
    """See :func:`convattn.ops.acmix`."""
    qkv = F.conv2d(x.x, x.projection_weight, x.projection_bias)
    q, k, v = _heads_of(x, qkv)
    attention = attend_operator.apply(AttendInputs(q, k, v, None, None, x.nbhd, x.num_heads, x.softmax_scale))
    steps = (*x.nbhd.stride, *x.dilation)
    convolution = group_operator.apply(GroupConvolutionInputs(qkv, x.weight.to(qkv.dtype), None, steps))
    out = attention * x.scale[:, None, None].to(qkv.dtype) + convolution
    if x.bias is not None:
        out = out + x.bias[:, None, None].to(qkv.dtype)
    return out.relu() if x.activation == "relu" else out


def _heads_of(x: AcmixInputs, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.chunk(3, 1)
    if x.position is not None:
        wide = x.position.float() if x.position.dtype in (torch.float16, torch.bfloat16) else x.position
        p = linear_position(wide, *k.shape[-2:]).to(k.dtype)
        k = (k.unflatten(1, (x.num_heads, -1)) - p).flatten(1, 2)
    return x.nbhd.centres(q), k, v


def acmix_and_kept(x: AcmixInputs) -> tuple[Tensor, Tensor]:
    """The output and, where they are kept, q, k and v."""
    if not x.keep:
        return acmix(x), x.x.new_empty(0)
    qkv = F.conv2d(x.x, x.projection_weight, x.projection_bias)
    return acmix(x), qkv.contiguous(memory_format=torch.channels_last)


def acmix_backward(grad: Tensor, x: AcmixInputs, out: Tensor, qkv: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AcmixInputs.tensors`."""
    grad = grad * (out > 0).to(grad.dtype) if x.activation == "relu" else grad
    qkv = F.conv2d(x.x, x.projection_weight, x.projection_bias)
    q, k, v = _heads_of(x, qkv)
    inputs = AttendInputs(q, k, v, None, None, x.nbhd, x.num_heads, x.softmax_scale)
    attention = attend_operator.apply(inputs)
    scaled = grad * x.scale[:, None, None].to(grad.dtype)
    dq, dk, dv, _, _ = attend_operator.first_derivative(scaled, inputs)
    dscale = (grad * attention).sum((0, 2, 3), dtype=accumulation_dtype(grad.dtype))
    convolution = GroupConvolutionInputs(qkv, x.weight.to(qkv.dtype), None, (*x.nbhd.stride, *x.dilation))
    dqkv, dweight, _ = group_operator.first_derivative(grad, convolution)
    step_y, step_x = x.nbhd.stride
    dqkv[:, : x.channels, ::step_y, ::step_x] += dq
    dqkv[:, x.channels :] += torch.cat([dk, dv], 1)
    dx, dprojection, dprojection_bias = project_backward(dqkv, x)
    return (
        dx,
        dprojection,
        dprojection_bias,
        _position_gradient(x, dk),
        dweight,
        dscale.sum(0, keepdim=True) if x.scale.shape[0] == 1 else dscale,
        grad.sum((0, 2, 3)),
    )


def _position_gradient(x: AcmixInputs, dk: Tensor) -> Tensor | None:
    if x.position is None:
        return None
    total = dk.float() if dk.dtype in (torch.float16, torch.bfloat16) else dk
    total = total.unflatten(1, (x.num_heads, -1)).sum((0, 1))
    along = (total.sum(1) @ coordinates(total.shape[2], total), total.sum(2) @ coordinates(total.shape[1], total))
    return -torch.stack(along, 1)


def project_backward(dqkv: Tensor, x: AcmixInputs, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the projection and its bias, from those images of the batch."""
    return torch.ops.aten.convolution_backward(
        dqkv,
        x.x[part],
        x.projection_weight,
        [dqkv.shape[1]],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, x.projection_bias is not None],
    )
