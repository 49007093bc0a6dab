"""What every implementation of ``attend`` is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convattn.ops._checks import check_map, check_queries, check_same, check_table
from convattn.ops._inputs import Inputs
from convattn.ops.neighborhood import Neighborhood


class _AttendFields(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    key_offsets: Tensor | None
    nbhd: Neighborhood
    num_heads: int
    scale: float


class AttendInputs(_AttendFields, Inputs, map="q", reads="k"):
    """Arguments of :func:`convattn.ops.attend`; see there for shapes."""

    __slots__ = ()

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        q, k, v = self.q, self.k, self.v
        check_queries(q, k, self.nbhd, self.num_heads)
        check_map("v", v)
        check_same("q", q, "v", v)
        if k.shape != v.shape:
            raise ValueError(
                f"k and v must have the same batch and channels and one size, got {list(k.shape)}, {list(v.shape)}"
            )
        heads, taps, head_dim = self.num_heads, len(self.nbhd), k.shape[1] // self.num_heads
        check_table("bias", self.bias, k, (heads, taps), (1, taps))
        check_table("key_offsets", self.key_offsets, k, (heads, taps, head_dim), (1, taps, head_dim))

    def vectors(self, like: Tensor) -> Tensor | None:
        """``key_offsets`` for every head ``[N, K, d]`` in the dtype of ``like``."""
        return None if self.key_offsets is None else self.key_offsets.to(like.dtype).expand(self.num_heads, -1, -1)
