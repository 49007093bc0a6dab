"""``correlate``, ``aggregate`` and ``scatter`` as operators: each one's gradients are the other two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from convattn.ops import _portable
from convattn.ops._checks import check_map, check_output_map, check_queries, check_same, check_weights
from convattn.ops._inputs import Inputs
from convattn.ops._operator import Operator
from convattn.ops.neighborhood import Neighborhood


class _CorrelateFields(NamedTuple):
    q: Tensor
    k: Tensor
    nbhd: Neighborhood
    num_heads: int


class CorrelateInputs(_CorrelateFields, Inputs, map="q", reads="k"):
    """Arguments of :func:`convattn.ops.correlate`; see there for shapes."""

    __slots__ = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[B, N, K, ceil(H/s), ceil(W/s)]``."""
        return (self.q.shape[0], self.num_heads, len(self.nbhd), *self.q.shape[2:])

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        check_queries(self.q, self.k, self.nbhd, self.num_heads)


class _AggregateFields(NamedTuple):
    weights: Tensor
    v: Tensor
    nbhd: Neighborhood


class AggregateInputs(_AggregateFields, Inputs, map="v", reads="v"):
    """Arguments of :func:`convattn.ops.aggregate`; see there for shapes."""

    __slots__ = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[B, C, ceil(H/s), ceil(W/s)]``."""
        return (*self.v.shape[:2], *self.weights.shape[3:])

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        check_map("v", self.v)
        check_same("weights", self.weights, "v", self.v)
        check_weights(self.weights, self.v, self.nbhd)
        check_output_map("weights", self.weights, self.nbhd, self.v.shape[2], self.v.shape[3])


class _ScatterFields(NamedTuple):
    weights: Tensor
    u: Tensor
    nbhd: Neighborhood
    size: tuple[int, int]


class ScatterInputs(_ScatterFields, Inputs, map="u", reads="u"):
    """Arguments of :func:`convattn.ops.scatter`; see there for shapes."""

    __slots__ = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[B, C, H, W]``."""
        return (*self.u.shape[:2], *self.size)

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        weights, u = self.weights, self.u
        check_map("u", u)
        check_same("weights", weights, "u", u)
        check_weights(weights, u, self.nbhd)
        if len(self.size) != 2:
            raise ValueError(f"size must be (H, W), got {tuple(self.size)}")
        check_output_map("weights", weights, self.nbhd, *self.size)
        check_output_map("u", u, self.nbhd, *self.size)

    def on_its_map(self) -> ScatterInputs:
        """The same with no offset or stride far beyond the map."""
        return self if self.nbhd.is_near else self._replace(nbhd=self.nbhd.on_map(*self.size))


def _correlate_backward(
    grad: Tensor, x: CorrelateInputs, needed: Sequence[bool], backend: str
) -> tuple[Tensor | None, ...]:
    size = (x.k.shape[2], x.k.shape[3])
    dq = aggregate.through_torch(AggregateInputs(grad, x.k, x.nbhd), backend) if needed[0] else None
    return dq, scatter.through_torch(ScatterInputs(grad, x.q, x.nbhd, size), backend) if needed[1] else None


def _aggregate_backward(
    grad: Tensor, x: AggregateInputs, needed: Sequence[bool], backend: str
) -> tuple[Tensor | None, ...]:
    heads, size = x.weights.shape[1], (x.v.shape[2], x.v.shape[3])
    dweights = correlate.through_torch(CorrelateInputs(grad, x.v, x.nbhd, heads), backend) if needed[0] else None
    return dweights, scatter.through_torch(ScatterInputs(x.weights, grad, x.nbhd, size), backend) if needed[1] else None


def _scatter_backward(
    grad: Tensor, x: ScatterInputs, needed: Sequence[bool], backend: str
) -> tuple[Tensor | None, ...]:
    heads = x.weights.shape[1]
    dweights = correlate.through_torch(CorrelateInputs(x.u, grad, x.nbhd, heads), backend) if needed[0] else None
    return dweights, aggregate.through_torch(AggregateInputs(x.weights, grad, x.nbhd), backend) if needed[1] else None


correlate = Operator("correlate", CorrelateInputs, _portable.correlate, gradient=_correlate_backward)
aggregate = Operator("aggregate", AggregateInputs, _portable.aggregate, gradient=_aggregate_backward)
scatter = Operator("scatter", ScatterInputs, _portable.scatter, gradient=_scatter_backward)
