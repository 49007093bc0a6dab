"""``pixel_shift_attention``: X-volution's attention, linear in the map and without a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch, _onnx
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_stored, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.pixel_shift import composed, eager, native
from convattn.ops.pixel_shift.inputs import PixelShiftInputs

_eager_backward = _dispatch.Backend(eager.pixel_shift_attention_backward)
_dispatch.register_backend(
    "pixel_shift_attention", "native", _dispatch.Backend(native.pixel_shift_attention, native.not_supported_reasons)
)
_dispatch.register_backend("pixel_shift_attention", "eager", _dispatch.Backend(eager.pixel_shift_attention))
# the gradient has no kernels of its own under either name
_dispatch.register_backend("pixel_shift_attention_backward", "native", _eager_backward)
_dispatch.register_backend("pixel_shift_attention_backward", "eager", _eager_backward)


def pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    nbhd: Neighborhood,
    *,
    num_heads: int = 1,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Pixel-shift self-attention: similarities with shifted keys weigh shifted values, without a softmax.

    .. math:: y_c(p) = \sum_d w_{d,c}\, \bigl(s^{(n)}_d(p) + b^{(n)}_d\bigr)\, v_c(p + d), \qquad
        s^{(n)}_d(p) = \frac{1}{\sqrt{C/N}} \sum_{c' \in n} q_{c'}(p)\, k_{c'}(p + d),

    n the head of c: X-volution's eq. 7. The gradient keeps nothing but the inputs, and neither pass holds a map for
    each offset; gradients of any order exist.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``; None leaves the factor v out, as section 6.1.2 reads.
        weight: w, ``[D, C]``, a number for each offset and channel.
        nbhd: the D offsets, the stride s and the border rule; the paper's are :meth:`Neighborhood.directions`.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``. With ``num_heads=C`` queries and
            keys are multiplied element by element.
        bias: b, a number for each head and offset, ``[N, D]``.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``q`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, pixel_shift_attention
        >>> q = k = v = torch.randn(2, 8, 5, 7)
        >>> pixel_shift_attention(q, k, v, torch.ones(24, 8), Neighborhood.directions(), num_heads=8).shape
        torch.Size([2, 8, 5, 7])
    """
    q, k, *values = _dispatch.autocast(q, k, *([] if v is None else [v]))
    v = values[0] if values else None
    inputs = PixelShiftInputs(q, k, v, weight, bias, nbhd, num_heads)
    inputs.check()
    if _dispatch.exports_to_onnx():
        return _onnx.pixel_shift_attention(inputs)
    if _dispatch.runs_directly(*inputs.tensors) and not q.is_meta:
        return _run(inputs, backend)
    return _pixel_shift_attention(*inputs.tensors, *flat(nbhd), num_heads, backend)


def _run(inputs: PixelShiftInputs, backend: str) -> Tensor:
    check_stored(*inputs.tensors)
    inputs = inputs.on_its_map()
    out: Tensor = _dispatch.select("pixel_shift_attention", backend, inputs)(inputs)
    return out.contiguous(memory_format=memory_format_of(inputs.q))


def _inputs(
    tensors: Sequence[Tensor | None], offsets: Sequence[int], stride: Sequence[int], border: str, num_heads: int
) -> PixelShiftInputs:
    inputs = PixelShiftInputs(*tensors, unflat(offsets, stride, border), num_heads)  # type: ignore[arg-type, call-arg]
    inputs.check()
    return inputs


@torch.library.custom_op("convattn::pixel_shift_attention", mutates_args=())
def _pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    backend: str,
) -> Tensor:
    return _run(_inputs((q, k, v, weight, bias), offsets, stride, border, num_heads), backend)


@_pixel_shift_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    backend: str,
) -> Tensor:
    _inputs((q, k, v, weight, bias), offsets, stride, border, num_heads)
    return q.new_empty(q.shape).contiguous(memory_format=memory_format_of(q))


@torch.library.custom_op("convattn::pixel_shift_attention_backward", mutates_args=())
def _pixel_shift_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _inputs((q, k, v, weight, bias), offsets, stride, border, num_heads).on_its_map()
    check_gradient(grad, q, q.shape)
    check_stored(grad, *inputs.tensors)
    dq, dk, dv, *tables = _dispatch.select("pixel_shift_attention_backward", backend, inputs)(grad, inputs)
    dq, dk = (d.contiguous(memory_format=memory_format_of(x)) for d, x in ((dq, q), (dk, k)))
    dv = dv if v is None else dv.contiguous(memory_format=memory_format_of(v))
    return dq, dk, dv, *tables


@_pixel_shift_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    backend: str,
) -> tuple[Tensor, ...]:
    _inputs((q, k, v, weight, bias), offsets, stride, border, num_heads)
    check_gradient(grad, q, q.shape)
    return tuple(
        q.new_empty(0) if x is None else x.new_empty(x.shape).contiguous(memory_format=_format_of(x))
        for x in (q, k, v, weight, bias)
    )


def _format_of(x: Tensor) -> torch.memory_format:
    return memory_format_of(x) if x.dim() == 4 else torch.contiguous_format


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.convattn.pixel_shift_attention_backward(grad, *tensors, *ctx.options)
    return *(None if x is None else d for x, d in zip(tensors, grads, strict=True)), *[None] * len(ctx.options)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def forward(*inputs: Tensor) -> Tensor:
        return composed.pixel_shift_attention(_inputs(inputs, *ctx.options[:-1]))

    return *second_derivatives(forward, ctx.saved_tensors, grads), *[None] * len(ctx.options)


_pixel_shift_attention.register_autograd(_backward, setup_context=_save)
_pixel_shift_attention_backward.register_autograd(_double_backward, setup_context=_save_backward)
