"""Involution: a kernel of its own for every pixel, made from that pixel."""

from __future__ import annotations

from math import gcd
from typing import Unpack

from torch import Tensor, nn

from convattn.layers._base import Geometry
from convattn.layers._checks import check_counts, check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers._pooling import average_pool
from convattn.ops import Neighborhood, aggregate
from convattn.ops.neighborhood import IntPair


class Involution2d(DropIn):
    r"""Involution: weights that differ from pixel to pixel and are shared by the channels of a group.

    .. math:: o_{c,i} = \sum_m \mathcal{H}_{i,m,g(c)}\; v_{c,\,i+m}, \qquad
        \mathcal{H}_i = W_1\, \mathrm{ReLU}(\mathrm{BN}(W_0 x_i))

    Zeros lie beyond the border. Where it strides, the kernels are made from the means of ``stride`` by ``stride``
    cells, as in the authors' code; a cell that reaches beyond the map (which their code does not take) is the mean of
    what lies on it.

    Source: Li et al., *Involution: Inverting the Inherence of Convolution for Visual Recognition*, CVPR 2021. There
    v is x itself. Ours is a 1x1 convolution before it where the channels change.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: k, odd; 7 as in the source.
        stride: distance between outputs.
        dilation: distance between taps.
        channels_per_group: channels that share a kernel, 16 as in the source. Where it does not divide C, their
            greatest common divisor.
        reduction: W_0 leaves ``C_in / reduction`` channels, a quarter as in the source.

    Raises:
        ValueError: an even ``kernel_size``, a number below 1; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> Involution2d(32, 32, stride=2)(torch.randn(2, 32, 9, 7)).shape
        torch.Size([2, 32, 5, 4])
    """

    shown = ("in_channels", "out_channels", "neighborhood", "groups", "stride")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 7,
        channels_per_group: int = 16,
        reduction: int = 4,
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        made = self._factory(geometry)
        check_counts(channels_per_group=channels_per_group, reduction=reduction)
        self.groups = out_channels // gcd(out_channels, channels_per_group)
        kernel = check_odd(kernel_size)
        self.neighborhood = Neighborhood.window(kernel, dilation=self.dilation, stride=self.stride, border="zeros")
        self.projection: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, bias=False, **made)
        hidden = max(1, in_channels // reduction)
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False, **made),
            nn.BatchNorm2d(hidden, **made),
            nn.ReLU(),
        )
        self.span = nn.Conv2d(hidden, self.groups * len(self.neighborhood), 1, **made)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        kernels = self.span(self.reduce(average_pool(x, self.neighborhood.stride)))
        v = x if self.projection is None else self.projection(x)
        return aggregate(kernels.unflatten(1, (self.groups, -1)), v, self.neighborhood)
