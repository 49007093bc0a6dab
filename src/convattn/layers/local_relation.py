"""Local relation: neighbours weighted by how well they compose with the pixel, and by their position."""

from __future__ import annotations

from math import gcd
from typing import Literal, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Geometry, Layer
from convattn.layers._checks import check_choice, check_counts, check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.ops import Neighborhood, aggregate, correlate
from convattn.ops._layout import accumulation_dtype
from convattn.ops._portable import softmax
from convattn.ops.neighborhood import IntPair

Composability: TypeAlias = Literal["squared_difference", "absolute_difference", "product"]

PRIOR_WIDTH = 32


class GeometricPrior(Layer):
    """A number for every offset of a window and every group: two layers with a ReLU between, read off the position.

    Positions are rows and columns from the centre in units of the window's reach, so from -1 to 1, whatever the
    dilation. The source leaves the scale and the width of the hidden layer open; both are ours.

    Args:
        kernel_size: rows and columns of the window, odd.
        groups: numbers for each offset.

    Example:
        >>> GeometricPrior((7, 7), 4)().shape
        torch.Size([4, 49])
    """

    def __init__(self, kernel_size: tuple[int, int], groups: int, **made: Unpack[Factory]) -> None:
        super().__init__()
        made = self._factory(made)
        self.kernel_size = kernel_size
        self.hidden = nn.Linear(2, PRIOR_WIDTH, **made)
        self.out = nn.Linear(PRIOR_WIDTH, groups, **made)

    def forward(self) -> Tensor:
        """The numbers ``[groups, K]``, offsets row by row."""
        weight = self.hidden.weight
        rows, columns = (
            (torch.arange(size, device=weight.device, dtype=weight.dtype) - size // 2) / max(1, size // 2)
            for size in self.kernel_size
        )
        positions = torch.stack([rows[:, None].expand(self.kernel_size), columns.expand(self.kernel_size)], -1)
        prior: Tensor = self.out(self.hidden(positions.flatten(0, 1)).relu())
        return prior.t()


class LocalRelation2d(DropIn):
    r"""The local relation layer: a softmax over the window of how well two pixels compose, plus a geometric prior.

    .. math:: o_i = W \sum_m \mathrm{softmax}_m\bigl(\Phi(q_i, k_{i+m}) + g_m\bigr)\; x_{i+m}

    q and k are one number per pixel and group of channels; g is :class:`GeometricPrior`. What is summed is x itself,
    and W is the channel transformation that follows, without which LR-Net-50 would fall 3 M short of its published
    23.3 M parameters. The border is reflected, which the source leaves open.

    Source: Hu et al., *Local Relation Networks for Image Recognition*, ICCV 2019.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the window, odd; 7 as in the source.
        stride: distance between outputs.
        dilation: distance between the pixels of a window.
        channels_per_group: channels that share weights, m = 8 as in the source. Where it does not divide C_in, their
            greatest common divisor.
        composability: Φ: ``"squared_difference"`` :math:`-(q - k)^2`, the source's default, ``"absolute_difference"``
            :math:`-|q - k|`, or ``"product"`` :math:`q k`.

    Raises:
        ValueError: an even ``kernel_size``, a number below 1, an unknown composability; in ``forward``, an input of
            another shape.

    Example:
        >>> import torch
        >>> LocalRelation2d(16, 32, stride=2)(torch.randn(2, 16, 9, 7)).shape
        torch.Size([2, 32, 5, 4])
    """

    shown = ("in_channels", "out_channels", "neighborhood", "groups", "stride", "composability")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 7,
        channels_per_group: int = 8,
        composability: Composability = "squared_difference",
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        made = self._factory(geometry)
        check_counts(channels_per_group=channels_per_group)
        check_choice("composability", composability, Composability)
        self.composability = composability
        self.groups = in_channels // gcd(in_channels, channels_per_group)
        kernel = check_odd(kernel_size)
        self.neighborhood = Neighborhood.window(kernel, dilation=self.dilation, stride=self.stride)
        self.projection = nn.Conv2d(in_channels, 2 * self.groups, 1, **made)
        self.prior = GeometricPrior(kernel, self.groups, **made)
        self.transform = nn.Conv2d(in_channels, out_channels, 1, bias=False, **made)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        qk = self.projection(x)
        q, k = qk.to(accumulation_dtype(qk.dtype)).chunk(2, 1)
        logits = self._compose(self.neighborhood.centres(q), k)
        weights = softmax(logits + self.prior().to(logits.dtype)[..., None, None], 2)
        out: Tensor = self.transform(aggregate(weights.to(x.dtype), x, self.neighborhood))
        return out

    def _compose(self, q: Tensor, k: Tensor) -> Tensor:
        """Φ of every query and the keys of its window, ``[B, G, K, Ho, Wo]``."""
        if self.composability == "product":
            return correlate(q, k, self.neighborhood, num_heads=self.groups)
        if self.composability == "absolute_difference":
            keys = correlate(torch.ones_like(q), k, self.neighborhood, num_heads=self.groups)
            return -(q.unsqueeze(2) - keys).abs()
        # -(q - k)² = 2qk - k² - q², and q² is the same for all keys of a softmax: a product of [2q, -1] and [k, k²].
        queries = torch.stack([2 * q, -torch.ones_like(q)], 2).flatten(1, 2)
        keys = torch.stack([k, k.square()], 2).flatten(1, 2)
        return correlate(queries, keys, self.neighborhood, num_heads=self.groups)
