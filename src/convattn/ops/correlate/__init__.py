"""``correlate``: dot products of every query with the keys of its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _dispatch, _onnx
from convattn.ops._checks import check_heads, check_map, check_output_map, check_same, check_stored, flat, unflat
from convattn.ops.correlate import eager, native, triton
from convattn.ops.neighborhood import Neighborhood

_dispatch.register_backend("correlate", "native", _dispatch.Backend(native.correlate, _dispatch.native_offset_reasons))
_dispatch.register_backend("correlate", "triton", _dispatch.Backend(triton.correlate, _dispatch.triton_offset_reasons))
_dispatch.register_backend("correlate", "eager", _dispatch.Backend(eager.correlate))


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, *, num_heads: int = 1, backend: str = "auto") -> Tensor:
    r"""Dot products of every query with the keys of its neighbourhood.

    .. math:: l^{(n)}_{ij,m} = \sum_{c \in n} q_{c,ij}\; k_{c,\,(i s + \Delta y_m,\, j s + \Delta x_m)}

    the inner part of ACmix's eq. 10, before scale and softmax.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``. With ``num_heads=C`` the products
            are element-wise.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, N, K, ceil(H/s), ceil(W/s)]``.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, correlate
        >>> ones = torch.ones(1, 4, 5, 5)
        >>> correlate(ones, ones, Neighborhood.window(3), num_heads=2)[0, 0, 0, 0, 0]
        tensor(2.)
    """
    q, k = _dispatch.autocast(q, k)
    if _dispatch.exports_to_onnx():
        _check(q, k, nbhd, num_heads)
        return _onnx.correlate(q, k, nbhd, num_heads)
    return _correlate(q, k, *flat(nbhd), num_heads, backend)  # which checks


def _check(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> None:
    check_map("q", q)
    check_map("k", k)
    check_same("q", q, "k", k)
    check_heads(k.shape[1], num_heads)
    check_output_map("q", q, nbhd, k.shape[2], k.shape[3])
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(f"q and k must have the same batch and channels, got {list(q.shape)} and {list(k.shape)}")


@torch.library.custom_op("convattn::correlate", mutates_args=())
def _correlate(
    q: Tensor, k: Tensor, offsets: Sequence[int], stride: Sequence[int], border: str, num_heads: int, backend: str
) -> Tensor:
    nbhd = unflat(offsets, stride, border)
    _check(q, k, nbhd, num_heads)
    check_stored(q, k)
    near = nbhd.on_map(k.shape[2], k.shape[3])
    return _dispatch.select("correlate", backend, near, q, k)(q, k, near, num_heads).contiguous()


@_correlate.register_fake
def _(
    q: Tensor, k: Tensor, offsets: Sequence[int], stride: Sequence[int], border: str, num_heads: int, backend: str
) -> Tensor:
    _check(q, k, unflat(offsets, stride, border), num_heads)
    return q.new_empty((q.shape[0], num_heads, len(offsets) // 2, q.shape[2], q.shape[3]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.geometry, ctx.backend = inputs[2:5], inputs[6]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k = ctx.saved_tensors
    need_q, need_k = ctx.needs_input_grad[:2]
    ops, size = torch.ops.convattn, list(k.shape[-2:])
    dq = ops.aggregate(grad, k, *ctx.geometry, ctx.backend) if need_q else None
    dk = ops.scatter(grad, q, *ctx.geometry, size, ctx.backend) if need_k else None
    return dq, dk, None, None, None, None, None


_correlate.register_autograd(_backward, setup_context=_save)
