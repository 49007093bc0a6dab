"""``attend``: softmax attention of every query over its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch, _onnx
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_heads, check_map, check_output_map, check_same, flat, unflat
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
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_map(name, x)
    q, k, v = _dispatch.autocast(q, k, v)
    check_same("q", q, "k", k)
    check_same("q", q, "v", v)
    check_heads(k.shape[1], num_heads)
    check_output_map("q", q, nbhd, k.shape[2], k.shape[3])
    if k.shape != v.shape or q.shape[:2] != k.shape[:2]:
        raise ValueError(
            f"q, k and v must have the same batch and channels, and k and v the same size, "
            f"got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    _check_table("bias", bias, (num_heads, len(nbhd)))
    _check_table("key_offsets", key_offsets, (num_heads, len(nbhd), k.shape[1] // num_heads))
    scale = (k.shape[1] // num_heads) ** -0.5 if scale is None else float(scale)
    if _dispatch.exports_to_onnx():
        return _onnx.attend(AttendInputs(q, k, v, bias, key_offsets, nbhd, num_heads, scale))
    return _attend(q, k, v, bias, key_offsets, *flat(nbhd), num_heads, scale, backend)


def _check_table(name: str, table: Tensor | None, shape: tuple[int, ...]) -> None:
    if table is not None and (table.shape[1:] != shape[1:] or table.shape[0] not in (1, shape[0])):
        raise ValueError(f"{name} must be {list(shape)} or {[1, *shape[1:]]}, got {list(table.shape)}")


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
    run = _dispatch.select("attend", backend, q, k, v)
    nbhd = unflat(offsets, stride, border)
    out: Tensor = run(AttendInputs(q, k, v, bias, key_offsets, nbhd, num_heads, scale))
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
    run = _dispatch.select("attend_backward", backend, q, k, v)
    nbhd = unflat(offsets, stride, border)
    inputs = AttendInputs(q, k, v, bias, key_offsets, nbhd, num_heads, scale)
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
    offsets, stride, border, num_heads, scale, _ = ctx.options
    nbhd = unflat(offsets, stride, border)

    def forward(*inputs: Tensor) -> Tensor:
        return offset_by_offset.attend(AttendInputs(*inputs, nbhd, num_heads, scale))  # type: ignore[arg-type, call-arg]

    return *second_derivatives(forward, ctx.saved_tensors, grads), *[None] * len(ctx.options)


_attend.register_autograd(_backward, setup_context=_save)
_attend_backward.register_autograd(_double_backward, setup_context=_save_backward)


_dispatch.register_backend("attend", "native", _dispatch.Backend(native.attend, _dispatch.native_reasons))
_dispatch.register_backend(
    "attend_backward", "native", _dispatch.Backend(native.attend_backward, _dispatch.native_reasons)
)
_dispatch.register_backend("attend", "triton", _dispatch.Backend(triton.attend, _dispatch.triton_reasons))
_dispatch.register_backend(
    "attend_backward", "triton", _dispatch.Backend(triton.attend_backward, _dispatch.triton_reasons)
)
_dispatch.register_backend("attend", "eager", _dispatch.Backend(eager.attend))
_dispatch.register_backend("attend_backward", "eager", _dispatch.Backend(eager.attend_backward))
