"""What every implementation of ``offset_convolution`` is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convattn.ops._checks import check_map, check_same, check_table
from convattn.ops._inputs import Inputs
from convattn.ops.neighborhood import Neighborhood


class _OffsetConvolutionFields(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    nbhd: Neighborhood


class OffsetConvolutionInputs(_OffsetConvolutionFields, Inputs, map="x", reads="x"):
    """Arguments of :func:`convattn.ops.offset_convolution`; see there for shapes."""

    __slots__ = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[B, G * V, ceil(H/s), ceil(W/s)]``."""
        size = self.nbhd.output_size(self.x.shape[2], self.x.shape[3])
        return self.x.shape[0], self.weight.shape[0] * self.weight.shape[2], *size

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        x, weight = self.x, self.weight
        check_map("x", x)
        check_same("x", x, "weight", weight)
        rows = len(self.nbhd) * x.shape[1]
        if weight.dim() != 3 or weight.shape[1] != rows or not weight.numel():
            raise ValueError(
                f"weight must be [G, {rows}, V], a row for each of {len(self.nbhd)} offsets and {x.shape[1]} channels, "
                f"got {list(weight.shape)}"
            )
        check_table("bias", self.bias, x, (weight.shape[0] * weight.shape[2],), holds="one number an output channel")
