"""Pairwise attention: the weight of a neighbour comes from its difference to the pixel (SAN's other form)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory
from convattn.layers.vector_attention import VectorAttention, VectorAttention2d, weights_network
from convattn.ops._layout import accumulation_dtype
from convattn.ops._portable import softmax


class PairwiseAttention(VectorAttention):
    r"""A softmax over what a small network makes of the difference between a pixel and each of its neighbours.

    .. math:: F_{c,i} = \sum_j \mathrm{softmax}_j\big(\gamma([q_i - k_j,\; p_i - p_j])\big)_{c \bmod C/s}\; v_{c,j}

    p is a learned linear map of the coordinates, which run from -1 to 1. :math:`\gamma` is batch norm, ReLU, a 1x1
    convolution, batch norm, ReLU and a 1x1 convolution to C/s weights; the channels c of one c mod C/s share weights.

    Source: Zhao et al., *Exploring Self-attention for Image Recognition*, CVPR 2020, section 3.1, with the
    relation that the authors found best, subtraction.

    Arguments and errors are those of :class:`PatchwiseAttention`.

    Example:
        >>> import torch
        >>> path = PairwiseAttention(16, kernel_size=3)
        >>> q, k, v = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7), torch.randn(2, 16, 5, 7)
        >>> path(q, k, v).shape
        torch.Size([2, 16, 5, 7])
    """

    def _make_network(self, made: Factory) -> None:
        self.position = nn.Conv2d(2, 2, 1, **made)
        features, heads = self.query_channels + 2, self.channels // self.share
        self.weights = weights_network(features, self.query_channels, heads, made)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of every window, ``[B, C/s, K², H, W]``."""
        height, width = k.shape[-2:]
        place = self.position(_coordinates(k)).to(k.dtype).expand(k.shape[0], -1, -1, -1)
        centres, padded = torch.cat([q, place], 1), self.neighborhood.pad(torch.cat([k, place], 1))
        others = torch.stack(list(self.neighborhood.views(padded, height, width)), 2)
        differences = (centres[:, :, None] - others).flatten(3)
        weights: Tensor = self.weights(differences)
        return softmax(weights, 2).unflatten(3, (height, width))


class PairwiseAttention2d(VectorAttention2d):
    """Pairwise attention with its projections: the SAM of SAN's pairwise blocks, and a drop-in for stride 1.

    Args:
        in_channels: C_in.
        out_channels: C; the others are those of :class:`PairwiseAttention`.

    Example:
        >>> import torch
        >>> PairwiseAttention2d(64, 16)(torch.randn(2, 64, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    path = PairwiseAttention


def _coordinates(like: Tensor) -> Tensor:
    """Column and row of every pixel of a map, from -1 to 1: ``[1, 2, H, W]``."""
    height, width = like.shape[-2:]
    counted = (torch.arange(n, device=like.device, dtype=accumulation_dtype(like.dtype)) for n in (height, width))
    rows, columns = (2 * places / places.amax().clamp(min=1) - 1 for places in counted)
    both = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return both[None].to(like.dtype)
