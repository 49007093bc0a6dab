"""What every implementation of ``acmix`` is given."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convattn.ops._checks import check_heads, check_map, check_same, check_table
from convattn.ops._inputs import Inputs
from convattn.ops.neighborhood import NEAR, Neighborhood, near_step


class _AcmixFields(NamedTuple):
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
    keep: bool = False


class AcmixInputs(_AcmixFields, Inputs, map="x", reads="x"):
    """Arguments of :func:`convattn.ops.acmix`; see there for shapes."""

    __slots__ = ()

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        x, projection = self.x, self.projection_weight
        check_map("x", x)
        check_same("x", x, "projection_weight", projection)
        if self.activation not in ("none", "relu"):
            raise ValueError(f"activation must be 'none' or 'relu', got {self.activation!r}")
        if projection.dim() != 4 or projection.shape[0] % 3 or not projection.numel():
            raise ValueError(f"projection_weight must be [3C, C_in, 1, 1], got {list(projection.shape)}")
        channels, heads = self.channels, self.num_heads
        check_heads(channels, heads)
        d, kernel = channels // heads, tuple(self.weight.shape[1:3])
        check_table("projection_weight", projection, x, (3 * channels, x.shape[1], 1, 1))
        check_table("projection_bias", self.projection_bias, x, (3 * channels,))
        check_table("position", self.position, x, (d, 2))
        check_table("weight", self.weight, x, (3 * heads, *kernel, heads, d))
        check_table("scale", self.scale, x, (1,), (channels,))
        check_table("bias", self.bias, x, (channels,))
        if self.weight.shape[1] % 2 == 0 or self.weight.shape[2] % 2 == 0:
            raise ValueError(f"weight must have odd kernel sizes, got {list(self.weight.shape[1:3])}")

    def on_its_map(self) -> AcmixInputs:
        """The same with no offset, stride or dilation far beyond the map."""
        if self.nbhd.is_near and max(self.dilation) <= NEAR:
            return self
        height, width = self.x.shape[2], self.x.shape[3]
        dilation = near_step(self.dilation[0], height), near_step(self.dilation[1], width)
        return self._replace(nbhd=self.nbhd.on_map(height, width), dilation=dilation)

    @property
    def channels(self) -> int:
        """C, of q, k, v and of the output."""
        return self.projection_weight.shape[0] // 3

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Of q, k and v in one map, which training may keep; ``[0]`` where they are not kept."""
        return (self.x.shape[0], 3 * self.channels, *self.x.shape[2:]) if self.keep else (0,)

    def saved(self, out: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """What the backward needs of the outputs."""
        return (out if self.activation == "relu" else out.new_empty(0)), qkv

    def check_saved(self, out: Tensor, qkv: Tensor) -> None:
        """Raise ``ValueError`` where they are not what :meth:`saved` gives."""
        check_table("out", out, self.x, self.output_shape, *([] if self.activation == "relu" else [(0,)]))
        check_table("qkv", qkv, self.x, self.kept_shape, (0,))
        if qkv.dtype != self.x.dtype:
            raise ValueError(
                f"qkv must be {self.x.dtype} as the map is, got {qkv.dtype}; hooks must give back what is saved"
            )

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
    places = torch.arange(size, device=like.device).to(like.dtype)  # onnxruntime counts in no half precision
    return places.mul(2).div(places[-1:].clamp(min=1)).sub(1)


def linear_position(weight: Tensor, height: int, width: int) -> Tensor:
    """``W (x, y)`` at every pixel, ``[d, H, W]``, of ``W`` ``[d, 2]``; coordinates run from -1 to 1."""
    along_x, along_y = weight.unbind(1)
    x, y = coordinates(width, weight), coordinates(height, weight)
    return along_x[:, None, None] * x + along_y[:, None, None] * y[:, None]
