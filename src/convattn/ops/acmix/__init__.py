"""``acmix``: the whole ACmix operator, projection, attention, convolution, mix and what follows, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_stored, check_table, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.acmix import composed, native
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.neighborhood import IntPair, Neighborhood, as_pair

Activation: TypeAlias = Literal["none", "relu"]


def acmix(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    nbhd: Neighborhood,
    num_heads: int,
    dilation: IntPair = 1,
    activation: Activation = "none",
    backend: str = "auto",
) -> Tensor:
    r"""ACmix with its convolution path folded into one grouped convolution.

    .. math:: o = \mathrm{act}\bigl(b + F_{conv}(q, k, v) + \gamma\, \mathrm{attend}(q, k - p, v)\bigr),
        \qquad [q; k; v] = W x + b_p

    ACmix's eq. 9-13, fig. 2c. Nothing of the attention is kept for the gradient.

    Args:
        x: ``[B, C_in, H, W]``.
        projection_weight: W, ``[3C, C_in, 1, 1]``.
        projection_bias: ``[3C]``.
        position: ``[C/N, 2]``: p at a pixel is this times its coordinates (x, y), which run from -1 to 1; the same
            for every head.
        weight: ``[3N, kh, kw, N, C/N]``: output channel ``g * N + o`` of the convolution path sums
            ``weight[t, :, :, o, g]`` over channel g of map t of q, k and v, which have N maps each. Zeros lie beyond
            the border.
        scale: γ, ``[1]`` or, for every output channel, ``[C]``.
        bias: b, ``[C]``.
        nbhd: the attention's offsets and border, and the stride of both paths.
        num_heads: N.
        dilation: distance between the taps of the convolution path.
        activation: ``"none"`` or ``"relu"``, last.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, acmix
        >>> x, projection = torch.randn(1, 8, 5, 7), torch.randn(3 * 8, 8, 1, 1)
        >>> weight, scale = torch.randn(3 * 2, 3, 3, 2, 4), torch.ones(1)
        >>> acmix(x, projection, None, None, weight, scale, nbhd=Neighborhood.window(7), num_heads=2).shape
        torch.Size([1, 8, 5, 7])
    """
    x, projection_weight, *others = _dispatch.autocast(
        x, projection_weight, *([] if projection_bias is None else [projection_bias])
    )
    projection_bias = others[0] if others else None
    steps = as_pair(dilation, "dilation")
    inputs = AcmixInputs(
        x, projection_weight, projection_bias, position, weight, scale, bias, nbhd, num_heads, steps, activation
    )
    inputs.check()
    if _dispatch.exports_to_onnx():
        return composed.acmix(inputs)
    if _dispatch.runs_directly(*inputs.tensors):
        check_stored(*inputs.tensors)
        inputs = inputs.on_its_map()
        out: Tensor = _dispatch.select("acmix", backend, inputs)(inputs, False)[0]
        return out.contiguous(memory_format=memory_format_of(x))
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors)
    keep = training and not native.not_supported_reasons(inputs) and native.keeps_projection(inputs)
    options = (*flat(nbhd), num_heads, list(steps), activation, keep, backend)
    return _acmix(*inputs.tensors, *options)[0]


def has_kernel(
    x: Tensor, nbhd: Neighborhood, head_dim: int, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> bool:
    """Whether ``acmix`` is more than a composition of other operators for these inputs on this machine."""
    return not _dispatch.exports_to_onnx() and not native.geometry_reasons(x, nbhd, head_dim, kernel_size, dilation)


@torch.library.custom_op("convattn::acmix", mutates_args=())
def _acmix(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    dilation: Sequence[int],
    activation: str,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    tensors = (x, projection_weight, projection_bias, position, weight, scale, bias)
    inputs = _inputs(tensors, offsets, stride, border, num_heads, dilation, activation).on_its_map()
    check_stored(*tensors)
    out, qkv = _dispatch.select("acmix", backend, inputs)(inputs, keep)
    return out.contiguous(memory_format=memory_format_of(x)), qkv


@_acmix.register_fake
def _(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    dilation: Sequence[int],
    activation: str,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    tensors = (x, projection_weight, projection_bias, position, weight, scale, bias)
    inputs = _inputs(tensors, offsets, stride, border, num_heads, dilation, activation)
    out = x.new_empty(inputs.output_shape).contiguous(memory_format=memory_format_of(x))
    if not keep:
        return out, x.new_empty(0)
    qkv = x.new_empty((x.shape[0], projection_weight.shape[0], *x.shape[2:]))
    return out, qkv.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("convattn::acmix_backward", mutates_args=())
def _acmix_backward(
    grad: Tensor,
    out: Tensor,
    qkv: Tensor,
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    dilation: Sequence[int],
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (x, projection_weight, projection_bias, position, weight, scale, bias)
    inputs = _inputs(tensors, offsets, stride, border, num_heads, dilation, activation).on_its_map()
    _check_saved(grad, out, qkv, inputs)
    check_stored(grad, out, qkv, *tensors)
    dx, *others = _dispatch.select("acmix_backward", backend, inputs)(grad, inputs, out, qkv)
    shaped = (d if t is None else d.contiguous() for d, t in zip(others, tensors[1:], strict=True))
    return dx.contiguous(memory_format=memory_format_of(x)), *shaped


@_acmix_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    qkv: Tensor,
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    dilation: Sequence[int],
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (projection_weight, projection_bias, position, weight, scale, bias)
    _check_saved(grad, out, qkv, _inputs((x, *tensors), offsets, stride, border, num_heads, dilation, activation))
    dx = x.new_empty(x.shape).contiguous(memory_format=memory_format_of(x))
    others = (x.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)
    return dx, *others  # type: ignore[return-value]


def _inputs(
    tensors: Sequence[Tensor | None],
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    num_heads: int,
    dilation: Sequence[int],
    activation: str,
) -> AcmixInputs:
    nbhd, steps = unflat(offsets, stride, border), as_pair(dilation, "dilation")
    inputs = AcmixInputs(*tensors, nbhd, num_heads, steps, activation)  # type: ignore[arg-type, call-arg]
    inputs.check()
    return inputs


def _check_saved(grad: Tensor, out: Tensor, qkv: Tensor, x: AcmixInputs) -> None:
    """What the forward pass kept for the backward: empty tensors where it kept nothing."""
    check_gradient(grad, x.x, x.output_shape)
    check_table("out", out, x.x, x.output_shape, *([] if x.activation == "relu" else [(0,)]))
    check_table("qkv", qkv, x.x, (x.x.shape[0], 3 * x.channels, *x.x.shape[2:]), (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, qkv = output
    *options, _, backend = inputs[7:]
    ctx.mark_non_differentiable(qkv)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out if options[-1] == "relu" else out.new_empty(0), qkv, *inputs[:7])
    ctx.options = (*options, backend)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors[2:]
    unused = [None] * (len(ctx.options) + 1)
    if grad is None:
        return *[None] * len(tensors), *unused
    grads = torch.ops.convattn.acmix_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *(None if t is None else d for t, d in zip(tensors, grads, strict=True)), *unused


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], *inputs[3:10])
    ctx.options = inputs[10:]


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def forward(*inputs: Tensor | None) -> Tensor:
        return composed.acmix(_inputs(inputs, *ctx.options[:-1]))

    of_grad, *of_inputs = second_derivatives(forward, ctx.saved_tensors, grads)
    return of_grad, None, None, *of_inputs, *[None] * len(ctx.options)


_acmix.register_autograd(_backward, setup_context=_save)
_acmix_backward.register_autograd(_double_backward, setup_context=_save_backward)


def _composed(x: AcmixInputs, keep: bool) -> tuple[Tensor, Tensor]:
    out = composed.acmix(x)
    if not keep:
        return out, x.x.new_empty(0)
    return out, torch.nn.functional.conv2d(x.x, x.projection_weight, x.projection_bias).contiguous(
        memory_format=torch.channels_last
    )


_dispatch.register_backend("acmix", "native", _dispatch.Backend(native.acmix, native.not_supported_reasons))
_dispatch.register_backend("acmix", "eager", _dispatch.Backend(_composed))
_dispatch.register_backend(
    "acmix_backward", "native", _dispatch.Backend(native.acmix_backward, native.not_supported_reasons)
)
_dispatch.register_backend("acmix_backward", "eager", _dispatch.Backend(composed.acmix_backward))
