"""What every implementation of ``pixel_shift_attention`` is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


class PixelShiftInputs(NamedTuple):
    """Checked arguments of :func:`convattn.ops.pixel_shift_attention`; see there for shapes."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    weight: Tensor
    bias: Tensor | None
    nbhd: Neighborhood
    num_heads: int

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensor arguments, in order."""
        return self[:5]

    @property
    def scale(self) -> float:
        """``head_dim ** -0.5``."""
        return float((self.k.shape[1] // self.num_heads) ** -0.5)
