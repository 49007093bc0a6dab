"""``group_convolution``: ACmix's convolution path as one convolution of the maps as they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_map, check_stored, check_table
from convattn.ops._layout import memory_format_of
from convattn.ops.group_convolution import eager, native
from convattn.ops.neighborhood import NEAR, IntPair, as_pair, near_step

_dispatch.register_backend(
    "group_convolution", "native", _dispatch.Backend(native.group_convolution, native.not_supported_reasons)
)
_dispatch.register_backend("group_convolution", "eager", _dispatch.Backend(eager.group_convolution))
_dispatch.register_backend(
    "group_convolution_backward",
    "native",
    _dispatch.Backend(native.group_convolution_backward, native.not_supported_reasons),
)
_dispatch.register_backend("group_convolution_backward", "eager", _dispatch.Backend(eager.group_convolution_backward))


def group_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    dilation: IntPair = 1,
    backend: str = "auto",
) -> Tensor:
    r"""ACmix's convolution path with its fully connected layer folded in: d convolutions, one for each head channel.

    .. math:: o_{gN + n} = b_{gN + n} + \sum_{t} W_{t,\cdot,\cdot,n,g} * x_{td + g}

    A grouped convolution whose groups are spread over the input, since q, k and v lie head by head, and that leaves
    its outputs group by group (ACmix fig. 2c: fc, shift and sum as one). Zeros lie beyond the border.

    Args:
        x: T maps of d channels, ``[B, T * d, H, W]``.
        weight: ``[T, kh, kw, N, d]``, odd kernel sizes.
        bias: ``[N * d]``.
        stride: distance between outputs.
        dilation: distance between taps.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, N * d, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes or dtypes that do not fit, an even kernel size, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import group_convolution
        >>> group_convolution(torch.randn(1, 6 * 8, 5, 7), torch.randn(6, 3, 3, 2, 8)).shape
        torch.Size([1, 16, 5, 7])
    """
    others = [] if bias is None else [bias]
    x, weight, *others = _dispatch.autocast(x, weight, *others)
    bias = others[0] if others else None
    steps = (*as_pair(stride, "stride"), *as_pair(dilation, "dilation"))
    _check(x, weight, bias, steps)
    if _dispatch.exports_to_onnx():
        return eager.group_convolution(x, weight, bias, steps)
    if _dispatch.runs_directly(x, weight, bias):
        return _run(x, weight, bias, steps, backend)
    return _group_convolution(x, weight, bias, list(steps), backend)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Sequence[int], backend: str) -> Tensor:
    check_stored(x, weight, bias)
    near = _on_map(steps, x)
    out: Tensor = _dispatch.select("group_convolution", backend, x, weight, near)(x, weight, bias, near)
    return out.contiguous(memory_format=memory_format_of(x))


def _on_map(steps: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """Strides and dilations, none far longer than the map."""
    return tuple(steps) if max(steps) <= NEAR else tuple(map(near_step, steps, (x.shape[2], x.shape[3]) * 2))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Sequence[int]) -> None:
    check_map("x", x)
    if weight.dim() != 5 or weight.shape[0] * weight.shape[4] != x.shape[1] or not weight.numel():
        raise ValueError(
            f"weight must be [T, kh, kw, N, d] with T * d = {x.shape[1]}, the channels of x, got {list(weight.shape)}"
        )
    check_table("weight", weight, x, weight.shape)
    if len(steps) != 4 or min(steps) < 1:
        raise ValueError(f"steps must be two strides and two dilations, each at least 1, got {list(steps)}")
    if weight.shape[1] % 2 == 0 or weight.shape[2] % 2 == 0:
        raise ValueError(f"weight must have odd kernel sizes, got {list(weight.shape[1:3])}")
    check_table("bias", bias, x, (weight.shape[3] * weight.shape[4],), holds="one number an output channel")


def _output_shape(x: Tensor, weight: Tensor, steps: Sequence[int]) -> tuple[int, ...]:
    height, width = ((size - 1) // step + 1 for size, step in zip(x.shape[2:], steps, strict=False))
    return x.shape[0], weight.shape[3] * weight.shape[4], height, width


def _check_backward(grad: Tensor, x: Tensor, weight: Tensor, steps: Sequence[int]) -> None:
    _check(x, weight, None, steps)
    check_gradient(grad, x, _output_shape(x, weight, steps))


@torch.library.custom_op("convattn::group_convolution", mutates_args=())
def _group_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Sequence[int], backend: str) -> Tensor:
    _check(x, weight, bias, steps)
    return _run(x, weight, bias, steps, backend)


@_group_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Sequence[int], backend: str) -> Tensor:
    _check(x, weight, bias, steps)
    return x.new_empty(_output_shape(x, weight, steps)).contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("convattn::group_convolution_backward", mutates_args=())
def _group_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, steps: Sequence[int], backend: str
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, x, weight, steps)
    check_stored(grad, x, weight)
    near = _on_map(steps, x)
    dx, dweight = _dispatch.select("group_convolution_backward", backend, x, weight, near)(grad, x, weight, near)
    return dx.contiguous(memory_format=memory_format_of(x)), dweight.to(weight.dtype).contiguous()


@_group_convolution_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, steps: Sequence[int], backend: str) -> tuple[Tensor, Tensor]:
    _check_backward(grad, x, weight, steps)
    return x.new_empty(x.shape).contiguous(memory_format=memory_format_of(x)), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight = torch.ops.convattn.group_convolution_backward(grad, *ctx.saved_tensors, *ctx.options)
    dbias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return dx, dweight, dbias, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.steps = tuple(inputs[3])


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return eager.group_convolution(x, weight, None, ctx.steps)

    return *second_derivatives(forward, ctx.saved_tensors, grads), None, None


_group_convolution.register_autograd(_backward, setup_context=_save)
_group_convolution_backward.register_autograd(_double_backward, setup_context=_save_backward)
