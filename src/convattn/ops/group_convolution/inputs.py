"""What every implementation of ``group_convolution`` is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convattn.ops._checks import check_map, check_table
from convattn.ops._inputs import Inputs
from convattn.ops.neighborhood import NEAR, near_step, strided_size


class _GroupConvolutionFields(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    steps: tuple[int, ...]


class GroupConvolutionInputs(_GroupConvolutionFields, Inputs, map="x", reads="x"):
    """Arguments of :func:`convattn.ops.group_convolution`; ``steps`` are two strides, then two dilations."""

    __slots__ = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``[B, N * d, ceil(H/s), ceil(W/s)]``."""
        height, width = map(strided_size, self.x.shape[2:], self.steps[:2])
        return self.x.shape[0], self.weight.shape[3] * self.weight.shape[4], height, width

    def check(self) -> None:
        """Raise ``ValueError`` where they do not fit together."""
        x, weight, steps = self.x, self.weight, self.steps
        check_map("x", x)
        if weight.dim() != 5 or weight.shape[0] * weight.shape[4] != x.shape[1] or not weight.numel():
            raise ValueError(
                f"weight must be [T, kh, kw, N, d] with T * d = {x.shape[1]}, the channels of x, "
                f"got {list(weight.shape)}"
            )
        check_table("weight", weight, x, weight.shape)
        if len(steps) != 4 or min(steps) < 1:
            raise ValueError(f"steps must be two strides and two dilations, each at least 1, got {list(steps)}")
        if weight.shape[1] % 2 == 0 or weight.shape[2] % 2 == 0:
            raise ValueError(f"weight must have odd kernel sizes, got {list(weight.shape[1:3])}")
        check_table("bias", self.bias, x, (weight.shape[3] * weight.shape[4],), holds="one number an output channel")

    def on_its_map(self) -> GroupConvolutionInputs:
        """The same with no stride or dilation far beyond the map."""
        if max(self.steps) <= NEAR:
            return self
        sizes = (int(self.x.shape[2]), int(self.x.shape[3])) * 2
        return self._replace(steps=tuple(map(near_step, self.steps, sizes)))
