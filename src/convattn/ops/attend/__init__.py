"""``attend``: softmax attention of every query over its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch, _onnx
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_heads, check_map, check_stored, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.attend import eager, native, triton
from convattn.ops.attend import offsets as offset_by_offset
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.neighborhood import Neighborhood


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    nbhd: Neighborhood,
    *,
    num_heads: int = 1,
    bias: Tensor | None = None,
    key_offsets: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Softmax attention of every query over its neighbourhood, which is never materialised.

    .. math:: o_i = \sum_m \mathrm{softmax}_m\bigl(\mathrm{scale}\; q_i \cdot (k_{i+m} + r_m) + b_m\bigr)\; v_{i+m}

    ACmix's eq. 9-12. The gradient keeps nothing but the inputs; gradients of any order exist. Beyond a ``"zeros"``
    border key and value are zero, and the position still counts in the softmax.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``.
        bias: a number b for each offset, ``[N, K]`` or ``[1, K]``.
        key_offsets: a vector r for each offset, ``[N, K, C/N]`` or ``[1, K, C/N]``: the relative positions of
            stand-alone self-attention.
        scale: ``(C/N) ** -0.5`` where None.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``q`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, attend
        >>> q = k = v = torch.randn(2, 8, 5, 7)
        >>> attend(q, k, v, Neighborhood.window(7), num_heads=4).shape
        torch.Size([2, 8, 5, 7])
    """
    q, k, v = _dispatch.autocast(q, k, v)
    if scale is None:
        check_map("k", k)
        check_heads(k.shape[1], num_heads)
        scale = (k.shape[1] // num_heads) ** -0.5
    tensors, options = (q, k, v, bias, key_offsets), (*flat(nbhd), num_heads, float(scale))
    if _dispatch.exports_to_onnx():
        return _onnx.attend(_inputs(tensors, *options))
    return _attend(*tensors, *options, backend)  # which checks


def _inputs(
    tensors: Sequence[Tensor | None], offsets: Sequence[int], stride: Sequence[int], border: str, *options: Any
) -> AttendInputs:
    inputs = AttendInputs(*tensors, unflat(offsets, stride, border), *options)  # type: ignore[arg-type, call-arg]
    inputs.check()
    return inputs


@torch.library.custom_op("convattn::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    scale: float,
    backend: str,
) -> Tensor:
    inputs = _inputs((q, k, v, bias, key_offsets), offsets, stride, border, num_heads, scale).on_its_map()
    check_stored(*inputs.tensors)
    out: Tensor = _dispatch.select("attend", backend, inputs.nbhd, q, k, v)(inputs)
    return out.contiguous(memory_format=memory_format_of(q))


@_attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    scale: float,
    backend: str,
) -> Tensor:
    _inputs((q, k, v, bias, key_offsets), offsets, stride, border, num_heads, scale)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device).contiguous(memory_format=memory_format_of(q))


@torch.library.custom_op("convattn::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _inputs((q, k, v, bias, key_offsets), offsets, stride, border, num_heads, scale).on_its_map()
    check_gradient(grad, q, q.shape)
    check_stored(grad, *inputs.tensors)
    run = _dispatch.select("attend_backward", backend, inputs.nbhd, q, k, v)
    dq, dk, dv, dbias, doffsets = run(grad, inputs)
    maps = (d.contiguous(memory_format=memory_format_of(x)) for d, x in ((dq, q), (dk, k), (dv, v)))
    return *maps, dbias, doffsets


@_attend_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _inputs((q, k, v, bias, key_offsets), offsets, stride, border, num_heads, scale)
    check_gradient(grad, q, q.shape)
    maps = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device).contiguous(memory_format=memory_format_of(x))
        for x in (q, k, v)
    )
    tables = (q.new_empty(0) if x is None else torch.empty_like(x) for x in (bias, key_offsets))
    return *maps, *tables  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.convattn.attend_backward(grad, *tensors, *ctx.options)
    return *(None if x is None else d for x, d in zip(tensors, grads, strict=True)), *[None] * len(ctx.options)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def forward(*inputs: Tensor) -> Tensor:
        return offset_by_offset.attend(_inputs(inputs, *ctx.options[:-1]))

    return *second_derivatives(forward, ctx.saved_tensors, grads), *[None] * len(ctx.options)


_attend.register_autograd(_backward, setup_context=_save)
_attend_backward.register_autograd(_double_backward, setup_context=_save_backward)


_dispatch.register_backend("attend", "native", _dispatch.Backend(native.attend, _dispatch.native_offset_reasons))
_dispatch.register_backend(
    "attend_backward", "native", _dispatch.Backend(native.attend_backward, _dispatch.native_offset_reasons)
)
_dispatch.register_backend("attend", "triton", _dispatch.Backend(triton.attend, _dispatch.triton_offset_reasons))
_dispatch.register_backend(
    "attend_backward", "triton", _dispatch.Backend(triton.attend_backward, _dispatch.triton_offset_reasons)
)
_dispatch.register_backend("attend", "eager", _dispatch.Backend(eager.attend))
_dispatch.register_backend("attend_backward", "eager", _dispatch.Backend(eager.attend_backward))
