"""``aggregate``: weighted sums of the values of every pixel's neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch, _onnx
from convattn.ops._checks import check_map, check_output_map, check_same, check_stored, check_weights, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.aggregate import eager, native, triton
from convattn.ops.neighborhood import Neighborhood

_dispatch.register_backend("aggregate", "native", _dispatch.Backend(native.aggregate, _dispatch.native_offset_reasons))
_dispatch.register_backend("aggregate", "triton", _dispatch.Backend(triton.aggregate, _dispatch.triton_offset_reasons))
_dispatch.register_backend("aggregate", "eager", _dispatch.Backend(eager.aggregate))


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood, *, backend: str = "auto") -> Tensor:
    r"""Weighted sums of the values of every pixel's neighbourhood.

    .. math:: o_{c,ij} = \sum_m w^{(n(c))}_{m,ij}\; v_{c,\,(i s + \Delta y_m,\, j s + \Delta x_m)}

    ACmix's eq. 12 with the weights given: a softmax makes it attention, a constant makes it a depthwise convolution.

    Args:
        weights: ``[B, N, K, ceil(H/s), ceil(W/s)]``; head n weighs the channels ``n * C/N`` to ``(n + 1) * C/N``.
        v: values ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``v`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, aggregate
        >>> mean = torch.full((1, 1, 9, 5, 5), 1 / 9)
        >>> bool(torch.allclose(aggregate(mean, torch.ones(1, 4, 5, 5), Neighborhood.window(3)), torch.ones(1)))
        True
    """
    weights, v = _dispatch.autocast(weights, v)
    if _dispatch.exports_to_onnx():
        _check(weights, v, nbhd)
        return _onnx.aggregate(weights, v, nbhd)
    return _aggregate(weights, v, *flat(nbhd), backend)  # which checks


def _check(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> None:
    check_map("v", v)
    check_same("weights", weights, "v", v)
    check_weights(weights, v, nbhd)
    check_output_map("weights", weights, nbhd, v.shape[2], v.shape[3])


@torch.library.custom_op("convattn::aggregate", mutates_args=())
def _aggregate(
    weights: Tensor, v: Tensor, offsets: Sequence[int], stride: Sequence[int], border: str, backend: str
) -> Tensor:
    nbhd = unflat(offsets, stride, border)
    _check(weights, v, nbhd)
    check_stored(weights, v)
    near = nbhd.on_map(v.shape[2], v.shape[3])
    out: Tensor = _dispatch.select("aggregate", backend, near, weights, v)(weights, v, near)
    return out.contiguous(memory_format=memory_format_of(v))


@_aggregate.register_fake
def _(weights: Tensor, v: Tensor, offsets: Sequence[int], stride: Sequence[int], border: str, backend: str) -> Tensor:
    _check(weights, v, unflat(offsets, stride, border))
    shape = (v.shape[0], v.shape[1], weights.shape[3], weights.shape[4])
    return torch.empty(shape, dtype=v.dtype, device=v.device).contiguous(memory_format=memory_format_of(v))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.geometry, ctx.backend = inputs[2:5], inputs[5]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weights, v = ctx.saved_tensors
    need_weights, need_v = ctx.needs_input_grad[:2]
    ops, size = torch.ops.convattn, list(v.shape[-2:])
    dweights = ops.correlate(grad, v, *ctx.geometry, weights.shape[1], ctx.backend) if need_weights else None
    dv = ops.scatter(weights, grad, *ctx.geometry, size, ctx.backend) if need_v else None
    return dweights, dv, None, None, None, None


_aggregate.register_autograd(_backward, setup_context=_save)
