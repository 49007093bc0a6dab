"""Attention over a whole map: as a path from q, k and v maps (ACmix eq. 20), and with its projection."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack

from torch import Tensor, nn

from convattn.layers._base import Factory, Geometry, Layer
from convattn.layers._checks import check_choice, check_division, heads_of
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers.folding import scale_values
from convattn.layers.tokens import as_map
from convattn.ops import Neighborhood
from convattn.ops._dispatch import dense_attention
from convattn.ops._layout import memory_format_of
from convattn.ops._recording import map_size, size_of
from convattn.ops.neighborhood import IntPair

AttentionOutput: TypeAlias = Literal["heads", "projected"]


class GlobalAttention(Layer):
    r"""An attention path from q, k and v maps, every pixel looking at all of them (ACmix eq. 20).

    .. math:: F_{att}(i) = \mathrm{softmax}_j\!\left(q_i \cdot k_j / \sqrt{d}\right) v_j

    k and v may be of another size than q (spatial reduction). There is no position term: order and shape of a map
    have no effect, so a sequence of T tokens is a map of T x 1 pixels.

    Args:
        channels: C of v and of the output.
        num_heads: N; must divide both channels.
        stride: distance between queries.
        query_channels: C_qk of q and k; None: ``channels``.
        output: ``"heads"``: the heads as they are; ``"projected"``: a linear layer (``proj``) follows, as in vision
            transformers. In ACmix, α then multiplies what it gives.

    Raises:
        ValueError: heads that do not divide the channels, an unknown output; in ``forward``, maps that do not fit.

    Example:
        >>> import torch
        >>> from convattn import ACmix
        >>> ACmix(8, 16, stride=2, attention=GlobalAttention(16, stride=2))(torch.randn(1, 8, 7, 9)).shape
        torch.Size([1, 16, 4, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        stride: IntPair = 1,
        query_channels: int | None = None,
        output: AttentionOutput = "heads",
        **made: Unpack[Factory],
    ) -> None:
        super().__init__()
        self.channels, self.num_heads = channels, num_heads
        self.query_channels = channels if query_channels is None else query_channels
        check_division(channels, num_heads)
        if self.query_channels < 1 or self.query_channels % num_heads:
            raise ValueError(f"query_channels={query_channels} must be divisible by num_heads, got {num_heads}")
        check_choice("output", output, AttentionOutput)
        self.queries = Neighborhood.window(1, stride=stride)
        self.proj = nn.Linear(channels, channels, **self._factory(made)) if output == "projected" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q ``[B, C_qk, H, W]``, k ``[B, C_qk, h, w]``, v ``[B, C, h, w]`` -> ``[B, C, ceil(H/s), ceil(W/s)]``."""
        self._check(q, k, v)
        q = self.queries.centres(q)
        heads = (self._heads(x) for x in (q, k, v))
        scale = (self.query_channels // self.num_heads) ** -0.5
        height, width = map_size(q)
        out = dense_attention(*heads, scale=scale).transpose(1, 2).reshape(-1, height * width, self.channels)
        return as_map(out if self.proj is None else self.proj(out), (height, width))

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, N * d, H, W]`` -> ``[B, N, H W, d]``."""
        height, width = map_size(x)
        head_dim = size_of(x, 1) // self.num_heads
        return x.permute(0, 2, 3, 1).reshape(-1, height * width, self.num_heads, head_dim).transpose(1, 2)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        expected = {"q": self.query_channels, "k": self.query_channels, "v": self.channels}
        for (name, channels), x in zip(expected.items(), (q, k, v), strict=True):
            if x.dim() != 4 or x.shape[1] != channels:
                raise ValueError(f"{name} must be [B, {channels}, H, W], got {list(x.shape)}")
        if k.shape[-2:] != v.shape[-2:]:
            raise ValueError(f"k and v must be of one size, got {list(k.shape)} and {list(v.shape)}")

    def extra_repr(self) -> str:
        """What the constructor got."""
        narrow = "" if self.query_channels == self.channels else f", query_channels={self.query_channels}"
        return f"{self.channels}, num_heads={self.num_heads}, stride={self.queries.stride}{narrow}"


class GlobalAttention2d(DropIn):
    r"""Self-attention over the whole map: :class:`GlobalAttention` with its projection.

    .. math:: y_p = \mathrm{softmax}_j\!\left(q_p \cdot k_j / \sqrt{d}\right) v_j, \qquad [q; k; v] = W x

    The operator that X-volution's paper calls self-attention (SA). There is no position term.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.

    Args:
        in_channels: C_in.
        out_channels: C.
        num_heads: N; must divide ``out_channels``. None: 4, or the divisor that is nearest to 4.
        stride: distance between queries.
        dilation: has no effect: every pixel sees every other.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> GlobalAttention2d(16, 32, stride=2)(torch.randn(1, 16, 15, 9)).shape
        torch.Size([1, 32, 8, 5])
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_heads: int | None = None, **geometry: Unpack[Geometry]
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        num_heads = heads_of(out_channels, num_heads)
        self.projection = nn.Conv2d(in_channels, 3 * out_channels, 1, bias=False, **self._factory(geometry))
        self.attention = GlobalAttention(out_channels, num_heads=num_heads, stride=self.stride)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        out: Tensor = self.attention(*self.projection(x).chunk(3, 1))
        return out.contiguous(memory_format=memory_format_of(x))

    def multiply(self, gain: Tensor) -> None:
        """Multiply the outputs by ``[C]``: an average of values scales as the values do."""
        scale_values(self.projection, gain)
