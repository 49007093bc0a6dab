"""``offset_convolution``: a convolution whose taps are any set of offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_map, check_same, check_stored, check_table, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.offset_convolution import eager, native

_eager = _dispatch.Backend(eager.offset_convolution)
_eager_backward = _dispatch.Backend(eager.offset_convolution_backward)
_dispatch.register_backend(
    "offset_convolution", "native", _dispatch.Backend(native.offset_convolution, _dispatch.native_offset_reasons)
)
_dispatch.register_backend("offset_convolution", "eager", _eager)
# training takes the convolutions apart: the gradient has no kernels of its own under either name
_dispatch.register_backend("offset_convolution_backward", "native", _eager_backward)
_dispatch.register_backend("offset_convolution_backward", "eager", _eager_backward)

BLOCK_OUTPUTS = (32, 16, 8)
"""Sizes of a block of outputs that fill whole vectors, best first."""


def offset_convolution(
    x: Tensor,
    weight: Tensor,
    nbhd: Neighborhood,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""A convolution whose taps are any set of offsets.

    .. math:: y_{gV + v}(p) = b_{gV + v} + \sum_d \sum_c W_{g,\,dC + c,\,v}\, x_c(s p + \delta_d)

    X-volution's static branches merged: 33 offsets of a 9 by 9 window. The CPU kernels compute nothing for zeros beyond
    the border, on a map of 7 by 7 half of the products.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[G, D * C, V]``: the outputs in G blocks of V, the taps of the D offsets one after the other, in the
            order of ``nbhd``. So the weights of a block lie together as they are multiplied, the outputs last;
            ``G = 1`` is the plain matrix. Blocks of 32, if they divide the outputs, suit the CPU kernels
            (:func:`blocks_of_outputs`).
        nbhd: the offsets, the stride s and the border rule; a convolution's is ``"zeros"``.
        bias: ``[G * V]``.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, G * V, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, offset_convolution
        >>> x, conv = torch.randn(1, 4, 5, 7), torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
        >>> weight = conv.weight.permute(2, 3, 1, 0).reshape(1, 9 * 4, 6)
        >>> y = offset_convolution(x, weight, Neighborhood.window(3, border="zeros"))
        >>> bool(torch.allclose(y, conv(x), atol=1e-5))
        True
    """
    others = [] if bias is None else [bias]
    x, weight, *others = _dispatch.autocast(x, weight, *others)
    bias = others[0] if others else None
    _check(x, weight, bias, nbhd)
    if _dispatch.exports_to_onnx():
        return eager.offset_convolution(x, weight, bias, nbhd)
    if _dispatch.runs_directly(x, weight, bias) and not x.is_meta:
        return _run(x, weight, bias, nbhd, backend)
    return _offset_convolution(x, weight, bias, *flat(nbhd), backend)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, nbhd: Neighborhood, backend: str) -> Tensor:
    check_stored(x, weight, bias)
    near = nbhd.on_map(x.shape[2], x.shape[3])
    out: Tensor = _dispatch.select("offset_convolution", backend, near, x, weight)(x, weight, bias, near)
    return out.contiguous(memory_format=memory_format_of(x))


def blocks_of_outputs(weight: Tensor) -> Tensor:
    """``[D, C_in, C_out]`` as :func:`offset_convolution` takes it, in blocks that fill whole vectors.

    Example:
        >>> blocks_of_outputs(torch.zeros(33, 4, 96)).shape, blocks_of_outputs(torch.zeros(9, 4, 6)).shape
        (torch.Size([3, 132, 32]), torch.Size([1, 36, 6]))
    """
    outputs = weight.shape[2]
    block = next((size for size in BLOCK_OUTPUTS if outputs % size == 0), outputs)
    return weight.flatten(0, 1).unflatten(1, (-1, block)).transpose(0, 1).contiguous()


def skips_zeros(x: Tensor) -> bool:
    """Whether the implementation for tensors such as this one computes nothing for zeros beyond the border.

    Example:
        >>> skips_zeros(torch.zeros(1, dtype=torch.float64))
        False
    """
    return _dispatch.select("offset_convolution", "auto", None, x) is native.offset_convolution


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, nbhd: Neighborhood) -> None:
    check_map("x", x)
    check_same("x", x, "weight", weight)
    rows = len(nbhd) * x.shape[1]
    if weight.dim() != 3 or weight.shape[1] != rows or not weight.numel():
        raise ValueError(
            f"weight must be [G, {rows}, V], a row for each of {len(nbhd)} offsets and {x.shape[1]} channels, "
            f"got {list(weight.shape)}"
        )
    check_table("bias", bias, x, (weight.shape[0] * weight.shape[2],), holds="one number an output channel")


@torch.library.custom_op("convattn::offset_convolution", mutates_args=())
def _offset_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    backend: str,
) -> Tensor:
    nbhd = unflat(offsets, stride, border)
    _check(x, weight, bias, nbhd)
    return _run(x, weight, bias, nbhd, backend)


@_offset_convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    backend: str,
) -> Tensor:
    nbhd = unflat(offsets, stride, border)
    _check(x, weight, bias, nbhd)
    out = x.new_empty((x.shape[0], weight.shape[0] * weight.shape[2], *nbhd.output_size(x.shape[2], x.shape[3])))
    return out.contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("convattn::offset_convolution_backward", mutates_args=())
def _offset_convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    nbhd = unflat(offsets, stride, border)
    _check_backward(grad, x, weight, nbhd)
    check_stored(grad, x, weight)
    near = nbhd.on_map(x.shape[2], x.shape[3])
    dx, dweight = _dispatch.select("offset_convolution_backward", backend, near, x)(grad, x, weight, near)
    return dx.contiguous(memory_format=memory_format_of(x)), dweight


@_offset_convolution_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad, x, weight, unflat(offsets, stride, border))
    return x.new_empty(x.shape).contiguous(memory_format=memory_format_of(x)), weight.new_empty(weight.shape)


def _check_backward(grad: Tensor, x: Tensor, weight: Tensor, nbhd: Neighborhood) -> None:
    _check(x, weight, None, nbhd)
    size = nbhd.output_size(x.shape[2], x.shape[3])
    check_gradient(grad, x, (x.shape[0], weight.shape[0] * weight.shape[2], *size))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight = torch.ops.convattn.offset_convolution_backward(grad, *ctx.saved_tensors, *ctx.options)
    dbias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return dx, dweight, dbias, *[None] * len(ctx.options)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *geometry, _ = ctx.options

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return eager.offset_convolution(x, weight, None, unflat(*geometry))

    return *second_derivatives(forward, ctx.saved_tensors, grads), *[None] * len(ctx.options)


_offset_convolution.register_autograd(_backward, setup_context=_save)
_offset_convolution_backward.register_autograd(_double_backward, setup_context=_save_backward)
