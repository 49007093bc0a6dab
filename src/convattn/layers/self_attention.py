"""Self-attention over a whole map where a convolution stood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.layers._checks import check_channels, check_division
from convattn.layers._drop_in import takes_maps
from convattn.layers.global_attention import GlobalAttention
from convattn.layers.reparameterized import _exact, _parameter
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import IntPair, as_pair


class GlobalAttention2d(nn.Module):
    r"""Self-attention over the whole map: :class:`GlobalAttention` with its projection.

    .. math:: y_p = \mathrm{softmax}_j\!\left(q_p \cdot k_j / \sqrt{d}\right) v_j, \qquad [q; k; v] = W x

    The operator that X-volution's paper calls self-attention (SA). There is no position term.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.

    Args:
        in_channels: C_in.
        out_channels: C.
        num_heads: N; must divide ``out_channels``.
        stride: distance between queries.
        dilation: has no effect: every pixel sees every other.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> GlobalAttention2d(16, 32, stride=2)(torch.randn(1, 16, 15, 9)).shape
        torch.Size([1, 32, 8, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 4,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(in_channels)
        check_division(out_channels, num_heads)
        as_pair(dilation, "dilation")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.projection = nn.Conv2d(in_channels, 3 * out_channels, 1, bias=False, device=device, dtype=dtype)
        self.attention = GlobalAttention(out_channels, num_heads=num_heads, stride=stride)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        out: Tensor = self.attention(*self.projection(x).chunk(3, 1))
        return out.contiguous(memory_format=memory_format_of(x))

    @torch.no_grad()
    def multiply(self, gain: Tensor) -> None:
        """Multiply the outputs by ``[C]``: an average of values scales as the values do."""
        weight = self.projection.weight
        ones = torch.ones_like(gain).repeat(2)
        self.projection.weight = _parameter(_exact(weight) * torch.cat([ones, gain])[:, None, None, None], weight)
