"""``attend`` offset by offset: one number a window position, whatever the values are.

Made of the operators that are differentiable to any order, it serves values that are not finite and second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._products import AggregateInputs, CorrelateInputs, ScatterInputs, aggregate, correlate, scatter
from convattn.ops.attend.inputs import AttendInputs


def _weights(x: AttendInputs) -> Tensor:
    logits, vectors = correlate.apply(CorrelateInputs(x.q, x.k, x.nbhd, x.num_heads)), x.vectors(x.q)
    if vectors is not None:
        logits = logits + torch.einsum("bnchw,nmc->bnmhw", x.q.unflatten(1, (x.num_heads, -1)), vectors)
    logits = logits * x.scale
    if x.bias is not None:
        logits = logits + x.bias.to(x.q.dtype)[..., None, None]
    return logits.softmax(2)


def _widened(x: AttendInputs) -> AttendInputs:
    """The same with the maps in the dtype that sums run in."""
    q, k, v = (t.to(accumulation_dtype(t.dtype)) for t in (x.q, x.k, x.v))
    return x._replace(q=q, k=k, v=v)


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    wide = _widened(x)
    return aggregate.apply(AggregateInputs(_weights(wide), wide.v, x.nbhd)).to(x.q.dtype)


def attend_backward(grad: Tensor, x: AttendInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AttendInputs.tensors`."""
    wide, size = _widened(x), (x.k.shape[2], x.k.shape[3])
    grad, weights, vectors = grad.to(wide.q.dtype), _weights(wide), wide.vectors(wide.q)
    dv = scatter.apply(ScatterInputs(weights, grad, x.nbhd, size))
    dlogits = correlate.apply(CorrelateInputs(grad, wide.v, x.nbhd, x.num_heads))
    dlogits = weights * (dlogits - (weights * dlogits).sum(2, keepdim=True))
    dbias = doffsets = None
    if x.bias is not None:
        dbias = dlogits.sum((0, 3, 4)).sum_to_size(x.bias.shape)
    dlogits *= x.scale
    dq = aggregate.apply(AggregateInputs(dlogits, wide.k, x.nbhd))
    if x.key_offsets is not None and vectors is not None:
        dq += torch.einsum("bnmhw,nmc->bnchw", dlogits, vectors).flatten(1, 2)
        toward = torch.einsum("bnmhw,bnchw->nmc", dlogits, wide.q.unflatten(1, (x.num_heads, -1)))
        doffsets = toward.sum_to_size(x.key_offsets.shape)
    dk = scatter.apply(ScatterInputs(dlogits, wide.q, x.nbhd, size))
    return dq, dk, dv, dbias, doffsets
