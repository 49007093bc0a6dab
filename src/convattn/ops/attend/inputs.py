"""What every implementation of ``attend`` is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


@dataclass(frozen=True, eq=False)
class AttendInputs:
    """Checked arguments of :func:`convattn.ops.attend`; see there for shapes."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    key_offsets: Tensor | None
    nbhd: Neighborhood
    num_heads: int
    scale: float

    def vectors(self, like: Tensor) -> Tensor | None:
        """``key_offsets`` for every head ``[N, K, d]`` in the dtype of ``like``."""
        return None if self.key_offsets is None else self.key_offsets.to(like.dtype).expand(self.num_heads, -1, -1)
