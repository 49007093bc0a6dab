"""``acmix`` out of a 1x1 convolution, ``attend`` and ``group_convolution``: any device, dtype and shape.

``acmix`` is differentiable as often as needed; ``acmix_backward`` writes its gradient out, for use inside an operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops.acmix.inputs import AcmixInputs, coordinates, linear_position
from convattn.ops.attend import attend
from convattn.ops.group_convolution import group_convolution


def acmix(x: AcmixInputs) -> Tensor:
    """See :func:`convattn.ops.acmix`."""
    qkv = F.conv2d(x.x, x.projection_weight, x.projection_bias)
    q, k, v = _heads_of(x, qkv)
    attention = attend(q, k, v, x.nbhd, num_heads=x.num_heads)
    convolution = group_convolution(qkv, x.weight.to(qkv.dtype), stride=x.nbhd.stride, dilation=x.dilation)
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


def acmix_backward(grad: Tensor, x: AcmixInputs, out: Tensor, qkv: Tensor) -> tuple[Tensor, ...]:
    """Gradients of :attr:`AcmixInputs.tensors`; an empty tensor for one that is not there."""
    ops = torch.ops.convattn
    grad = grad * (out > 0).to(grad.dtype) if x.activation == "relu" else grad
    qkv = F.conv2d(x.x, x.projection_weight, x.projection_bias)
    q, k, v = _heads_of(x, qkv)
    offsets, stride = [value for offset in x.nbhd.offsets for value in offset], list(x.nbhd.stride)
    options = (offsets, stride, x.nbhd.border, x.num_heads, x.softmax_scale, "auto")
    attention = ops.attend(q, k, v, None, None, *options)
    scaled = grad * x.scale[:, None, None].to(grad.dtype)
    dq, dk, dv, _, _ = ops.attend_backward(scaled, q, k, v, None, None, *options)
    dscale = (grad * attention).sum((0, 2, 3), dtype=accumulation_dtype(grad.dtype))
    steps = [*stride, *x.dilation]
    dqkv, dweight = ops.group_convolution_backward(grad, qkv, x.weight.to(qkv.dtype), steps, "auto")
    step_y, step_x = x.nbhd.stride
    dqkv[:, : x.channels, ::step_y, ::step_x] += dq
    dqkv[:, x.channels :] += torch.cat([dk, dv], 1)
    dx, dprojection, dprojection_bias = project_backward(dqkv, x)
    found = (
        dx,
        dprojection,
        dprojection_bias,
        _position_gradient(x, dk),
        dweight,
        dscale.sum(0, keepdim=True) if x.scale.shape[0] == 1 else dscale,
        grad.sum((0, 2, 3)),
    )
    return tuple(
        x.x.new_empty(0) if d is None or t is None else d.to(t.dtype) for d, t in zip(found, x.tensors, strict=True)
    )


def _position_gradient(x: AcmixInputs, dk: Tensor) -> Tensor:
    if x.position is None:
        return dk.new_empty(0)
    total = dk.float() if dk.dtype in (torch.float16, torch.bfloat16) else dk
    total = total.unflatten(1, (x.num_heads, -1)).sum((0, 1))
    along = (total.sum(1) @ coordinates(total.shape[2], total), total.sum(2) @ coordinates(total.shape[1], total))
    return -torch.stack(along, 1).to(x.position.dtype)


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
