"""What every implementation of ``pixel_shift_attention`` is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convattn.ops._checks import check_map, check_queries, check_same, check_table
from convattn.ops._inputs import Inputs
from convattn.ops.neighborhood import Neighborhood


class _PixelShiftFields(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor | None
    weight: Tensor
    bias: Tensor | None
    nbhd: Neighborhood
    num_heads: int


class PixelShiftInputs(_PixelShiftFields, Inputs, map="q", reads="k"):
    """Arguments of :func:`convattn.ops.pixel_shift_attention`; see there for shapes."""

    __slots__ = ()

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        q, k, v = self.q, self.k, self.v
        check_queries(q, k, self.nbhd, self.num_heads)
        if v is not None:
            check_map("v", v)
            check_same("q", q, "v", v)
            if v.shape != k.shape:
                raise ValueError(f"k and v must have one shape, got {list(k.shape)} and {list(v.shape)}")
        taps, heads = len(self.nbhd), self.num_heads
        check_table("weight", self.weight, k, (taps, k.shape[1]), holds="a number for each offset and channel")
        check_table("bias", self.bias, k, (heads, taps), holds="a number for each head and offset")

    @property
    def scale(self) -> float:
        """``head_dim ** -0.5``."""
        return float((self.k.shape[1] // self.num_heads) ** -0.5)
