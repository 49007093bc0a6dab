"""Pairwise attention: the weight of a neighbour comes from its difference to the pixel (SAN's other form)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Layer
from convattn.layers._checks import check_counts, check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers.patchwise import check_maps, divisor_of, weighted_sum
from convattn.ops import Neighborhood
from convattn.ops._layout import accumulation_dtype, memory_format_of
from convattn.ops.neighborhood import Border, IntPair


class PairwiseAttention(Layer):
    r"""A softmax over what a small network makes of the difference between a pixel and each of its neighbours.

    .. math:: F_{c,i} = \sum_j \mathrm{softmax}_j\big(\gamma([q_i - k_j,\; p_i - p_j])\big)_{c \bmod C/s}\; v_{c,j}

    p is a learned linear map of the coordinates, which run from -1 to 1. :math:`\gamma` is batch norm, ReLU, a 1x1
    convolution, batch norm, ReLU and a 1x1 convolution to C/s weights; the channels c of one c mod C/s share weights.

    Source: Zhao et al., *Exploring Self-attention for Image Recognition*, CVPR 2020, section 3.1, with the
    relation that the authors found best, subtraction.

    Args:
        channels: C of v and of the output.
        query_channels: of q and k; None: C/4, as in the source.
        kernel_size: sides of the window, odd.
        share: s, how many channels share weights; must divide C. None: 8 as in the source, or where 8 does not divide
            C the largest number below that does.
        border: what lies beyond the map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: an even kernel, a share that does not divide the channels; in ``forward``, maps of another shape.

    Example:
        >>> import torch
        >>> path = PairwiseAttention(16, kernel_size=3)
        >>> q, k, v = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7), torch.randn(2, 16, 5, 7)
        >>> path(q, k, v).shape
        torch.Size([2, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        query_channels: int | None = None,
        kernel_size: IntPair = 7,
        share: int | None = None,
        border: Border = "reflect",
        **made: Unpack[Factory],
    ) -> None:
        super().__init__()
        made = self._factory(made)
        self.channels = channels
        self.query_channels = max(channels // 4, 1) if query_channels is None else query_channels
        check_counts(channels=channels, query_channels=self.query_channels)
        self.share = divisor_of(channels, share)
        self.kernel_size = check_odd(kernel_size)
        self.neighborhood = Neighborhood.window(self.kernel_size, border=border)
        self.position = nn.Conv2d(2, 2, 1, **made)
        features = self.query_channels + 2
        self.weights = nn.Sequential(
            nn.BatchNorm2d(features, **made),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, self.query_channels, 1, bias=False, **made),
            nn.BatchNorm2d(self.query_channels, **made),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.query_channels, channels // self.share, 1, **made),
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q and k ``[B, C_qk, H, W]``, v ``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        check_maps(q, k, v, self.query_channels, self.channels)
        return weighted_sum(self.attention_weights(q, k), v, self.neighborhood, self.share)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of every window, ``[B, C/s, K², H, W]``."""
        height, width = k.shape[-2:]
        place = self.position(_coordinates(k)).to(k.dtype).expand(k.shape[0], -1, -1, -1)
        centres, padded = torch.cat([q, place], 1), self.neighborhood.pad(torch.cat([k, place], 1))
        others = torch.stack(list(self.neighborhood.views(padded, height, width)), 2)
        differences = (centres[:, :, None] - others).flatten(3)
        weights: Tensor = self.weights(differences)
        return weights.softmax(2).unflatten(3, (height, width))

    def extra_repr(self) -> str:
        """What the constructor got."""
        return (
            f"{self.channels}, query_channels={self.query_channels}, kernel_size={self.kernel_size}, "
            f"share={self.share}, border={self.neighborhood.border!r}"
        )


class PairwiseAttention2d(DropIn):
    """Pairwise attention with its projections: the SAM of SAN's pairwise blocks, and a drop-in for stride 1.

    Args:
        in_channels: C_in.
        out_channels: C.
        query_channels: of q and k; None: C/4, as in the source.
        kernel_size: sides of the window, odd.
        share: how many channels share weights, see :class:`PairwiseAttention`.
        border: what lies beyond the map.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: as :class:`PairwiseAttention`; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> PairwiseAttention2d(64, 16)(torch.randn(2, 64, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        query_channels: int | None = None,
        kernel_size: IntPair = 7,
        share: int | None = None,
        border: Border = "reflect",
        **made: Unpack[Factory],
    ) -> None:
        super().__init__(in_channels, out_channels)
        self.attention = PairwiseAttention(
            out_channels, query_channels=query_channels, kernel_size=kernel_size, share=share, border=border, **made
        )
        self.split = (self.attention.query_channels, self.attention.query_channels, out_channels)
        self.projection = nn.Conv2d(in_channels, sum(self.split), 1, **made)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, H, W]``; ``[C_in, H, W]`` likewise."""
        out: Tensor = self.attention(*self.projection(x).split(self.split, 1))
        return out.contiguous(memory_format=memory_format_of(x))


def _coordinates(like: Tensor) -> Tensor:
    """Column and row of every pixel of a map, from -1 to 1: ``[1, 2, H, W]``."""
    height, width = like.shape[-2:]
    counted = (torch.arange(n, device=like.device, dtype=accumulation_dtype(like.dtype)) for n in (height, width))
    rows, columns = (2 * places / places.amax().clamp(min=1) - 1 for places in counted)
    both = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return both[None].to(like.dtype)
