"""``attend`` offset by offset: one number a window position, whatever the values are.

Made of the operators that are differentiable to any order, it serves values that are not finite and second derivatives.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convattn.ops._checks import flat
from convattn.ops._layout import accumulation_dtype
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.neighborhood import Neighborhood


def _weights(x: AttendInputs) -> Tensor:
    logits, vectors = _correlate(x.q, x.k, x.nbhd, x.num_heads), x.vectors(x.q)
    if vectors is not None:
        logits = logits + torch.einsum("bnchw,nmc->bnmhw", x.q.unflatten(1, (x.num_heads, -1)), vectors)
    logits = logits * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(x.q.dtype)[..., None, None]
    return logits.softmax(2)


def _widened(x: AttendInputs) -> AttendInputs:
    """The same with the maps in the dtype that sums run in."""
    q, k, v = (t.to(accumulation_dtype(t.dtype)) for t in (x.q, x.k, x.v))
    return replace(x, q=q, k=k, v=v)


def _correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    return torch.ops.convattn.correlate(q, k, *flat(nbhd), num_heads, "auto")


def _aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    return torch.ops.convattn.aggregate(weights, v, *flat(nbhd), "auto")


def _scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    return torch.ops.convattn.scatter(weights, u, *flat(nbhd), list(size), "auto")


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    wide = _widened(x)
    return _aggregate(_weights(wide), wide.v, x.nbhd).to(x.q.dtype)


def attend_backward(grad: Tensor, x: AttendInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, bias and key_offsets; the last two are empty where the input is None."""
    wide, size, dtype = _widened(x), (x.k.shape[2], x.k.shape[3]), x.q.dtype
    grad, weights, vectors = grad.to(wide.q.dtype), _weights(wide), wide.vectors(wide.q)
    dv = _scatter(weights, grad, x.nbhd, size)
    dlogits = _correlate(grad, wide.v, x.nbhd, x.num_heads)
    dlogits = weights * (dlogits - (weights * dlogits).sum(2, keepdim=True))
    dbias, doffsets = x.q.new_zeros(0), x.q.new_zeros(0)
    if x.bias is not None:
        dbias = dlogits.sum((0, 3, 4)).sum_to_size(x.bias.shape).to(x.bias.dtype)
    dlogits *= x.scale
    dq = _aggregate(dlogits, wide.k, x.nbhd)
    if x.key_offsets is not None and vectors is not None:
        dq += torch.einsum("bnmhw,nmc->bnchw", dlogits, vectors).flatten(1, 2)
        toward = torch.einsum("bnmhw,bnchw->nmc", dlogits, wide.q.unflatten(1, (x.num_heads, -1)))
        doffsets = toward.sum_to_size(x.key_offsets.shape).to(x.key_offsets.dtype)
    dk = _scatter(dlogits, wide.q, x.nbhd, size)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), dbias, doffsets
