"""What every implementation of ``acmix`` is given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


class AcmixInputs(NamedTuple):
    """Checked arguments of :func:`convattn.ops.acmix`; see there for shapes."""

    x: Tensor
    projection_weight: Tensor
    projection_bias: Tensor | None
    position: Tensor | None
    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    nbhd: Neighborhood
    num_heads: int
    dilation: tuple[int, int]
    activation: str

    @property
    def channels(self) -> int:
        """C, of q, k, v and of the output."""
        return self.projection_weight.shape[0] // 3

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensor arguments, in order."""
        return (
            self.x,
            self.projection_weight,
            self.projection_bias,
            self.position,
            self.weight,
            self.scale,
            self.bias,
        )

    def as_gradients(self, found: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        """Gradients of :attr:`tensors` in their dtypes; an empty tensor for one that is not there."""
        pairs = zip(found, self.tensors, strict=True)
        return tuple(self.x.new_empty(0) if d is None or t is None else d.to(t.dtype) for d, t in pairs)

    @property
    def softmax_scale(self) -> float:
        """``head_dim ** -0.5``."""
        return float((self.channels // self.num_heads) ** -0.5)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``[B, C, ceil(H/s), ceil(W/s)]``."""
        return (self.x.shape[0], self.channels, *self.nbhd.output_size(*self.x.shape[-2:]))


def coordinates(size: int, like: Tensor) -> Tensor:
    """``linspace(-1, 1, size)``, spelled so that an exported size stays free; a single pixel lies at -1."""
    steps = torch.sym_max(size - 1, 1)
    return torch.arange(size, device=like.device, dtype=like.dtype).mul(2).div(steps).sub(1)  # type: ignore[arg-type]


def linear_position(weight: Tensor, height: int, width: int) -> Tensor:
    """``W (x, y)`` at every pixel, ``[d, H, W]``, of ``W`` ``[d, 2]``; coordinates run from -1 to 1."""
    along_x, along_y = weight.unbind(1)
    x, y = coordinates(width, weight), coordinates(height, weight)
    return along_x[:, None, None] * x + along_y[:, None, None] * y[:, None]
