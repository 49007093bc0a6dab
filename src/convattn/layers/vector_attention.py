"""What both forms of SAN's attention share: weights for each window from q and k, a sum of the values by them."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor, nn

from convattn.layers._base import Factory, Layer
from convattn.layers._checks import check_counts, check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.ops import Neighborhood, aggregate
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import Border, IntPair


class VectorAttention(Layer):
    """Attention whose weights a small network makes, one for ``share`` channels of each neighbour.

    A subclass makes the network ``weights`` in ``_make_network`` and computes ``attention_weights``. Arguments and
    errors are those of :class:`convattn.layers.PatchwiseAttention`.
    """

    shown = ("channels", "query_channels", "kernel_size", "share", "border")
    weights: nn.Sequential

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
        self.channels, self.border = channels, border
        self.query_channels = max(channels // 4, 1) if query_channels is None else query_channels
        check_counts(channels=channels, query_channels=self.query_channels)
        self.share = divisor_of(channels, share)
        self.kernel_size = check_odd(kernel_size)
        self.neighborhood = Neighborhood.window(self.kernel_size, border=border)
        self._make_network(self._factory(made))

    def _make_network(self, made: Factory) -> None:
        raise NotImplementedError

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q and k ``[B, C_qk, H, W]``, v ``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        check_maps(q, k, v, self.query_channels, self.channels)
        return self.attend(q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for maps that were checked."""
        return weighted_sum(self.attention_weights(q, k), v, self.neighborhood, self.share)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of every window, ``[B, C/s, K², H, W]``."""
        raise NotImplementedError


def weights_network(features: int, hidden: int, outputs: int, made: Factory) -> nn.Sequential:
    """Batch norm, ReLU and 1x1 convolution, twice."""
    return nn.Sequential(
        nn.BatchNorm2d(features, **made),
        nn.ReLU(inplace=True),
        nn.Conv2d(features, hidden, 1, bias=False, **made),
        nn.BatchNorm2d(hidden, **made),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, 1, **made),
    )


class VectorAttention2d(DropIn):
    """Such an attention with its projections: the SAM of SAN's blocks, and a drop-in for a convolution of stride 1.

    A subclass names the attention, whose arguments these are too.
    """

    path: ClassVar[type[VectorAttention]]

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
        self.attention = self.path(
            out_channels,
            query_channels=query_channels,
            kernel_size=kernel_size,
            share=share,
            border=border,
            **self._factory(made),
        )
        self.split = (self.attention.query_channels, self.attention.query_channels, out_channels)
        self.projection = nn.Conv2d(in_channels, sum(self.split), 1, **made)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, H, W]``; ``[C_in, H, W]`` likewise."""
        out: Tensor = self.attention(*self.projection(x).split(self.split, 1))
        return out.contiguous(memory_format=memory_format_of(x))


def divisor_of(channels: int, share: int | None) -> int:
    """How many channels share weights; for None that is 8, or the largest number below that divides the channels.

    Raises:
        ValueError: a given number does not divide them.

    Example:
        >>> divisor_of(64, None), divisor_of(20, None)
        (8, 5)
    """
    found = next(s for s in range(8, 0, -1) if channels % s == 0) if share is None else share
    if found < 1 or channels % found:
        raise ValueError(f"share must divide the {channels} channels, got {share}; None chooses one that does")
    return found


def check_maps(q: Tensor, k: Tensor, v: Tensor, query_channels: int, channels: int) -> None:
    """Maps of one size with the channels of a path.

    Raises:
        ValueError: others.
    """
    expected = (v.shape[0], query_channels, *v.shape[2:])
    if v.dim() != 4 or v.shape[1] != channels or tuple(q.shape) != expected or tuple(k.shape) != expected:
        shapes = ", ".join(str(list(part.shape)) for part in (q, k, v))
        raise ValueError(f"q and k must be [B, {query_channels}, H, W] and v [B, {channels}, H, W], got {shapes}")


def weighted_sum(weights: Tensor, v: Tensor, nbhd: Neighborhood, share: int) -> Tensor:
    """``aggregate``, whose heads are blocks of neighbouring channels, by weights that ``share`` channels share."""
    heads = v.shape[1] // share
    if heads == 1 or share == 1:  # nothing to regroup; axes of one would tie an exported size
        return aggregate(weights, v, nbhd)
    by_head = regrouped(v, share, heads).flatten(1, 2)
    out = regrouped(aggregate(weights, by_head, nbhd), heads, share).flatten(1, 2)
    return out.contiguous(memory_format=memory_format_of(v))


def regrouped(x: Tensor, outer: int, inner: int) -> Tensor:
    """``[B, outer * inner, H, W]`` -> ``[B, inner, outer, H, W]``."""
    return x.unflatten(1, (outer, inner)).transpose(1, 2)
