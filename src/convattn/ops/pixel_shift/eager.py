"""``pixel_shift_attention`` by one pass over shifted views of the padded keys and values for each offset.

Images and heads are independent, so they are taken a few at a time: what a pass holds stays in the cache, and its
memory does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from convattn.ops._dispatch import cores_of, working_set_bytes
from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.pixel_shift.inputs import PixelShiftInputs

FORWARD_MAPS, BACKWARD_MAPS = 6, 9
"""About how many maps a pass holds at once."""


class _Part:
    """Some images and heads in the dtype that sums run in, keys and values padded.

    By head, a map is ``[b, n, C/N, H, W]``, a coefficient ``[b, n, 1, H, W]`` and a weight ``[n, C/N, 1, 1]``.
    """

    def __init__(self, x: PixelShiftInputs, images: slice, heads: slice) -> None:
        head_dim = x.k.shape[1] // x.num_heads
        self.x, self.heads = x, heads
        self.channels = slice(heads.start * head_dim, heads.stop * head_dim)
        self.place = (images, self.channels)
        self.dtype, self.format = accumulation_dtype(x.q.dtype), memory_format_of(x.q)
        self.q, self.keys = self.cut(x.q), self._padded(x.k)
        self.values = None if x.v is None else self._padded(x.v)
        self.weight = x.weight[:, self.channels].to(self.dtype)[..., None, None]
        self.bias = None if x.bias is None else x.bias[heads].to(self.dtype).t()[..., None, None, None]
        self.product = torch.empty_like(self.q)
        self.other = self.product if head_dim > 1 else torch.empty_like(self.q)

    def cut(self, x: Tensor) -> Tensor:
        """This part of a map, in the dtype that sums run in."""
        return x[self.place].to(self.dtype).contiguous(memory_format=self.format)

    def _padded(self, x: Tensor) -> Tensor:
        return self.x.nbhd.pad(self.cut(x)).contiguous(memory_format=self.format)

    def by_head(self, x: Tensor) -> Tensor:
        """``[b, c, H, W]`` -> ``[b, n, C/N, H, W]``, ``[c, 1, 1]`` -> ``[n, C/N, 1, 1]``."""
        return x.unflatten(-3, (self.heads.stop - self.heads.start, -1))

    def sum_heads(self, x: Tensor) -> Tensor:
        """The sum over the channels of each head, kept as a dimension; ``x`` itself where a head is one channel."""
        found = self.by_head(x)
        return found if found.shape[2] == 1 else found.sum(2, keepdim=True)

    def coefficient(self, d: int, keys: Tensor) -> Tensor:
        """``s + bias`` for one offset; it may lie in :attr:`product`."""
        found = self.sum_heads(torch.mul(self.q, keys, out=self.product)).mul_(self.x.scale)
        return found if self.bias is None else found.add_(self.bias[d])

    def views(self, *padded: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        """For every offset, the shifted views of those maps that are there."""
        size = self.x.k.shape[-2:]
        return zip(*(self.x.nbhd.views(p, *size) for p in padded if p is not None), strict=True)

    def output(self) -> Tensor:
        """This part of the operator's output."""
        total = torch.zeros_like(self.q)
        by_head = self.by_head(total)
        for d, (keys, *values) in enumerate(self.views(self.keys, self.values)):
            coefficient, factor = self.coefficient(d, keys), self.weight[d]
            for shifted in values:
                factor = torch.mul(shifted, factor, out=self.other)
            by_head.addcmul_(coefficient, self.by_head(factor))
        return total

    def gradients(self, grad: Tensor, dweight: Tensor, dbias: Tensor | None) -> tuple[Tensor, ...]:
        """Gradients of this part of q, k and, if it is there, v; those of the tables are added to what is given."""
        grad, factor = self.cut(grad), torch.empty_like(self.q)
        dq, dkeys = torch.zeros_like(self.q), torch.zeros_like(self.keys)
        dvalues = None if self.values is None else torch.zeros_like(self.keys)
        for d, (keys, dshifted, *more) in enumerate(self.views(self.keys, dkeys, self.values, dvalues)):
            coefficient, weight = self.coefficient(d, keys), self.weight[d]
            toward = torch.mul(grad, more[0], out=factor) if more else factor.copy_(grad)
            weighted = torch.mul(self.by_head(toward), coefficient, out=self.by_head(self.other))
            dweight[d, self.channels] += weighted.sum((0, 3, 4)).flatten()
            if more:
                weighted = self.by_head(torch.mul(grad, weight, out=self.other))
                self.by_head(more[1]).addcmul_(coefficient, weighted)
            dcoefficient = self.sum_heads(toward.mul_(weight))
            if dbias is not None:
                dbias[self.heads, d] += dcoefficient.sum((0, 2, 3, 4))
            dcoefficient = dcoefficient.mul_(self.x.scale)
            self.by_head(dq).addcmul_(dcoefficient, self.by_head(keys))
            self.by_head(dshifted).addcmul_(dcoefficient, self.by_head(self.q))
        del self.keys, self.values, self.product, self.other, factor
        size = self.x.k.shape[-2:]
        return dq, *(self.x.nbhd.unpad(d, *size) for d in (dkeys, dvalues) if d is not None)


def _parts(x: PixelShiftInputs, maps: int) -> Iterator[_Part]:
    """Few enough images and heads at a time for that many maps to fit each thread's working set, but one at least."""
    batch, heads = x.k.shape[0], x.num_heads
    height, width = (size + sum(x.nbhd.reach(axis)) for axis, size in enumerate(x.k.shape[2:]))
    elements = x.k.shape[1] // heads * height * width
    fit = cores_of(x.k.device) * working_set_bytes(x.k.device) // max(1, 4 * maps * elements)
    images, together = max(1, fit // heads), max(1, min(fit, heads))
    for first in range(0, batch, images):
        for head in range(0, heads, together):
            yield _Part(x, slice(first, min(first + images, batch)), slice(head, min(head + together, heads)))


def _assembled(made: Iterable[tuple[_Part, Sequence[Tensor]]], like: Sequence[Tensor]) -> list[Tensor]:
    """Maps from their parts; a part that is the whole is not copied, nor is there another of its size meanwhile."""
    wholes: list[Tensor] = []
    for part, pieces in made:
        if pieces[0].shape == like[0].shape:
            return [piece.to(x.dtype) for piece, x in zip(pieces, like, strict=True)]
        wholes = wholes or [_empty(x) for x in like]
        for whole, piece in zip(wholes, pieces, strict=True):
            whole[part.place] = piece
    return wholes or [_empty(x) for x in like]


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    return _assembled(((part, [part.output()]) for part in _parts(x, FORWARD_MAPS)), [x.q])[0]


def pixel_shift_attention_backward(grad: Tensor, x: PixelShiftInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`PixelShiftInputs.tensors`."""
    dtype = accumulation_dtype(x.q.dtype)
    dweight = torch.zeros_like(x.weight, dtype=dtype)
    dbias = None if x.bias is None else torch.zeros_like(x.bias, dtype=dtype)
    made = ((part, part.gradients(grad, dweight, dbias)) for part in _parts(x, BACKWARD_MAPS))
    dq, dk, *dv = _assembled(made, [t for t in (x.q, x.k, x.v) if t is not None])
    return dq, dk, dv[0] if dv else None, dweight, dbias
