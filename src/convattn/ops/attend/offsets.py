"""``attend`` offset by offset: one number a window position, whatever the values are.

Made of the operators that are differentiable to any order, it serves values that are not finite and second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._checks import flat
from convattn.ops._layout import accumulation_dtype
from convattn.ops.neighborhood import Neighborhood


def _weights(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    nbhd: Neighborhood,
    num_heads: int,
    scale: float,
) -> Tensor:
    logits = _correlate(q, k, nbhd, num_heads)
    if key_offsets is not None:
        vectors = key_offsets.to(q.dtype).expand(num_heads, -1, -1)
        logits = logits + torch.einsum("bnchw,nmc->bnmhw", q.unflatten(1, (num_heads, -1)), vectors)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias.to(q.dtype)[..., None, None]
    return logits.softmax(2)


def _correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    return torch.ops.convattn.correlate(q, k, *flat(nbhd), num_heads, "auto")


def _aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    return torch.ops.convattn.aggregate(weights, v, *flat(nbhd), "auto")


def _scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    return torch.ops.convattn.scatter(weights, u, *flat(nbhd), list(size), "auto")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    nbhd: Neighborhood,
    num_heads: int,
    scale: float,
) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    like, dtype = q, accumulation_dtype(q.dtype)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return _aggregate(_weights(q, k, bias, key_offsets, nbhd, num_heads, scale), v, nbhd).to(like.dtype)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    nbhd: Neighborhood,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, bias and key_offsets; the last two are empty where the input is None."""
    like, size = q, (k.shape[2], k.shape[3])
    grad, q, k, v = (x.to(accumulation_dtype(q.dtype)) for x in (grad, q, k, v))
    weights = _weights(q, k, bias, key_offsets, nbhd, num_heads, scale)
    dv = _scatter(weights, grad, nbhd, size)
    dlogits = _correlate(grad, v, nbhd, num_heads)
    dlogits = weights * (dlogits - (weights * dlogits).sum(2, keepdim=True))
    dbias, doffsets = like.new_zeros(0), like.new_zeros(0)
    if bias is not None:
        dbias = dlogits.sum((0, 3, 4)).sum_to_size(bias.shape).to(bias.dtype)
    dlogits *= scale
    dq = _aggregate(dlogits, k, nbhd)
    if key_offsets is not None:
        vectors = key_offsets.to(q.dtype).expand(num_heads, -1, -1)
        dq += torch.einsum("bnmhw,nmc->bnchw", dlogits, vectors).flatten(1, 2)
        toward = torch.einsum("bnmhw,bnchw->nmc", dlogits, q.unflatten(1, (num_heads, -1)))
        doffsets = toward.sum_to_size(key_offsets.shape).to(key_offsets.dtype)
    dk = _scatter(dlogits, q, nbhd, size)
    return dq.to(like.dtype), dk.to(like.dtype), dv.to(like.dtype), dbias, doffsets
