"""``scatter``: the adjoint of ``aggregate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._checks import check_map, check_output_map, check_same, check_stored, check_weights, flat, unflat
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.scatter import eager, native, triton

_dispatch.register_backend("scatter", "native", _dispatch.Backend(native.scatter, _dispatch.native_offset_reasons))
_dispatch.register_backend("scatter", "triton", _dispatch.Backend(triton.scatter, _dispatch.triton_offset_reasons))
_dispatch.register_backend("scatter", "eager", _dispatch.Backend(eager.scatter))


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int], *, backend: str = "auto") -> Tensor:
    r"""Hands every output pixel's map to the pixels of its neighbourhood: the adjoint of :func:`aggregate`.

    .. math:: g_{c,ab} = \sum_{(ij,m)\,:\,(i s + \Delta y_m,\, j s + \Delta x_m) \mapsto ab}
        w^{(n(c))}_{m,ij}\; u_{c,ij}

    ``<scatter(w, u), v> == <u, aggregate(w, v)>``. With :func:`correlate` the three are closed under differentiation,
    which is why gradients of any order exist.

    Args:
        weights: ``[B, N, K, ceil(H/s), ceil(W/s)]``.
        u: ``[B, C, ceil(H/s), ceil(W/s)]``.
        nbhd: the K offsets, the stride s and the border rule.
        size: ``(H, W)`` of the map that the neighbourhood reads.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, H, W]``, channels_last where ``u`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, scatter
        >>> scatter(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 2), Neighborhood(((0, 1),)), (1, 2))
        tensor([[[[1., 1.]]]])
    """
    weights, u = _dispatch.autocast(weights, u)
    return _scatter(weights, u, *flat(nbhd), list(size), backend)  # which checks


def _check(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: Sequence[int]) -> None:
    check_map("u", u)
    check_same("weights", weights, "u", u)
    check_weights(weights, u, nbhd)
    if len(size) != 2:
        raise ValueError(f"size must be (H, W), got {tuple(size)}")
    check_output_map("weights", weights, nbhd, *size)
    check_output_map("u", u, nbhd, *size)


@torch.library.custom_op("convattn::scatter", mutates_args=())
def _scatter(
    weights: Tensor,
    u: Tensor,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    size: Sequence[int],
    backend: str,
) -> Tensor:
    nbhd = unflat(offsets, stride, border)
    _check(weights, u, nbhd, size)
    check_stored(weights, u)
    near = nbhd.on_map(size[0], size[1])
    target = u.new_empty(1).expand(*size)  # for its size alone
    out: Tensor = _dispatch.select("scatter", backend, near, weights, u, target)(weights, u, near, (size[0], size[1]))
    return out.contiguous(memory_format=memory_format_of(u))


@_scatter.register_fake
def _(
    weights: Tensor,
    u: Tensor,
    offsets: Sequence[int],
    stride: Sequence[int],
    border: str,
    size: Sequence[int],
    backend: str,
) -> Tensor:
    _check(weights, u, unflat(offsets, stride, border), size)
    shape = (u.shape[0], u.shape[1], size[0], size[1])
    return torch.empty(shape, dtype=u.dtype, device=u.device).contiguous(memory_format=memory_format_of(u))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.geometry, ctx.backend = inputs[2:5], inputs[6]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weights, u = ctx.saved_tensors
    need_weights, need_u = ctx.needs_input_grad[:2]
    ops = torch.ops.convattn
    dweights = ops.correlate(u, grad, *ctx.geometry, weights.shape[1], ctx.backend) if need_weights else None
    du = ops.aggregate(weights, grad, *ctx.geometry, ctx.backend) if need_u else None
    return dweights, du, None, None, None, None, None


_scatter.register_autograd(_backward, setup_context=_save)
