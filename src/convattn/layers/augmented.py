"""Attention-augmented convolution, and the relative positions of global attention that came with it."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._base import Geometry
from convattn.layers._checks import check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.ops._dispatch import dense_attention
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import IntPair, as_pair, same_padding

GlobalPositionKind: TypeAlias = Literal["relative"]

LEAST_KEY_CHANNELS = 20


def relative_logits(q: Tensor, rows: Tensor, columns: Tensor, width: int) -> Tensor:
    r"""Products of every query with the vectors of its distances to every key.

    .. math:: l_{ij} = q_i \cdot (r_{y_j - y_i} + s_{x_j - x_i})

    A distance beyond the tables' counts as their farthest (Shaw et al., *Self-Attention with Relative Position
    Representations*, NAACL 2018), so tables of any length serve any map, and where they are long enough they are
    those of the source.

    Args:
        q: queries ``[B, N, H * W, d]``, row by row.
        rows: r, ``[2 S - 1, d]``, distances from -(S - 1) to S - 1.
        columns: s, likewise; a length of its own.
        width: W.

    Returns:
        ``[B, N, H * W, H * W]``.

    Example:
        >>> import torch
        >>> relative_logits(torch.ones(1, 2, 12, 8), torch.ones(5, 8), torch.ones(7, 8), width=4).shape
        torch.Size([1, 2, 12, 12])
    """
    places = torch.arange(q.shape[2], device=q.device)
    row = places.div(width, rounding_mode="floor")
    # by the row: ONNX has no remainder by a size that is not known yet
    return _by_distance(q, rows, row, places) + _by_distance(q, columns, places - row * width, places)


def _by_distance(q: Tensor, table: Tensor, along: Tensor, places: Tensor) -> Tensor:
    """A product for each distance, then the one of every key, by one index for all images and heads.

    An index that is expanded over them would tie ONNX files to the example's batch.
    """
    products, reach, pixels = q @ table.to(q.dtype).t(), table.shape[0] // 2, q.shape[2]
    distances = (along - along[:, None]).clamp(-reach, reach) + reach
    index = (places[:, None] * table.shape[0] + distances).flatten()
    return products.flatten(2).index_select(2, index).unflatten(2, (pixels, -1))


def attend_everywhere(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor] | None, num_heads: int) -> Tensor:
    r"""Softmax attention of every pixel over the whole map, :math:`q_i \cdot (k_j + r_{ij}) / \sqrt{d}`.

    Through ``F.scaled_dot_product_attention``. With relative positions the logits are made, so memory grows with
    ``(H W)²``.

    Args:
        q: queries ``[B, N d, H, W]``.
        k: keys likewise.
        v: values ``[B, N e, H, W]``.
        tables: the vectors of rows and columns, see :func:`relative_logits`; None: no positions.
        num_heads: N.

    Returns:
        ``[B, N e, H, W]``, channels_last where ``v`` is.

    Example:
        >>> import torch
        >>> q, v = torch.randn(1, 8, 3, 4), torch.randn(1, 4, 3, 4)
        >>> attend_everywhere(q, q, v, None, num_heads=2).shape
        torch.Size([1, 4, 3, 4])
    """
    queries, keys, values = (t.unflatten(1, (num_heads, -1)).flatten(3).transpose(2, 3).contiguous() for t in (q, k, v))
    bias = None
    if tables is not None:
        bias = relative_logits(queries * queries.shape[-1] ** -0.5, *tables, width=q.shape[3]).to(values.dtype)
    out = dense_attention(queries, keys, values, bias)
    maps = out.transpose(2, 3).contiguous().flatten(1, 2).unflatten(2, q.shape[2:])
    return maps.contiguous(memory_format=memory_format_of(v))


class AugmentedConv2d(DropIn):
    r"""Attention-augmented convolution: some channels from a convolution, the others from global attention.

    .. math:: [\,\mathrm{Conv}(x);\; W_o\,\mathrm{MHSA}(x)\,], \qquad
        \mathrm{softmax}_j\bigl(q_i \cdot (k_j + r_{y_j - y_i} + s_{x_j - x_i}) / \sqrt{d}\bigr)\, v_j

    The attention gives :math:`d_v = \upsilon C` channels from :math:`d_k = \kappa C` channels of keys, each rounded
    to a multiple of the heads, at least one value and 20 keys a head (section 4.2 of the source). Where the layer
    strides, the attention reads x through a 3x3 average pooling of that stride, the downsampling of the source.

    The tables r and s are shared by the heads. They hold distances up to ``feature_size - 1``; farther ones count as
    the farthest. At 224x224 the largest map in a ResNet that the source augments measures 28x28, the default, so that
    every distance has a vector of its own there.

    Source: Bello et al., *Attention Augmented Convolutional Networks*, ICCV 2019.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the convolution's kernel, odd.
        num_heads: N; the source has 8 in ResNets. At most C.
        stride: distance between outputs.
        dilation: distance between the taps of the convolution; the attention sees everything anyway.
        key_ratio: κ; 0.2 as in the source's ResNets.
        value_ratio: υ; 0.1 as in the source's ResNets. 1: attention alone.
        position: ``"relative"`` or None.
        feature_size: rows and columns up to which distances have vectors of their own.

    Raises:
        ValueError: an even ``kernel_size``, more heads than channels, a ratio outside (0, 1], an unknown position; in
            ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> layer = AugmentedConv2d(64, 128, stride=2)
        >>> layer(torch.randn(1, 64, 15, 15)).shape, layer.value_channels
        (torch.Size([1, 128, 8, 8]), 12)
    """

    shown = ("in_channels", "out_channels", "num_heads", "stride", "key_channels", "value_channels")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 3,
        num_heads: int = 4,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        position: GlobalPositionKind | None = "relative",
        feature_size: IntPair = 28,
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        made = self._factory(geometry)
        if not 1 <= num_heads <= out_channels:
            raise ValueError(f"num_heads must lie between 1 and out_channels={out_channels}, got {num_heads}")
        for name, ratio in (("key_ratio", key_ratio), ("value_ratio", value_ratio)):
            if not 0 < ratio <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {ratio}")
        if position not in ("relative", None):
            raise ValueError(f"position must be 'relative' or None, got {position!r}")
        self.num_heads = num_heads
        kernel, taps = check_odd(kernel_size), self.dilation
        head_dim = max(LEAST_KEY_CHANNELS, round(key_ratio * out_channels / num_heads))
        self.key_channels = num_heads * head_dim
        of_value = max(1, min(out_channels // num_heads, round(value_ratio * out_channels / num_heads)))
        self.value_channels = num_heads * of_value
        rest = out_channels - self.value_channels
        padding = same_padding(kernel, taps)
        self.convolution: nn.Conv2d | None = None
        if rest:
            self.convolution = nn.Conv2d(in_channels, rest, kernel, self.stride, padding, taps, bias=False, **made)
        projected = 2 * self.key_channels + self.value_channels
        self.projection = nn.Conv2d(in_channels, projected, 1, bias=False, **made)
        self.out = nn.Conv2d(self.value_channels, self.value_channels, 1, bias=False, **made)
        self.rows: nn.Parameter | None = None
        self.columns: nn.Parameter | None = None
        if position is not None:
            height, width = as_pair(feature_size, "feature_size")
            self.rows = nn.Parameter(torch.empty(2 * height - 1, head_dim, **made))
            self.columns = nn.Parameter(torch.empty(2 * width - 1, head_dim, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tables with a variance of 1/d, as in the source; the convolutions draw themselves."""
        for table in (self.rows, self.columns):
            if table is not None:
                nn.init.normal_(table, std=table.shape[1] ** -0.5)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        attention = self._attention(x)
        return attention if self.convolution is None else torch.cat([self.convolution(x), attention], 1)

    def _attention(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1):
            # torch 2.11 has a wrong gradient for a pooling of channels_last maps on a GPU
            planes = x.contiguous() if x.is_cuda else x
            x = F.avg_pool2d(planes, 3, self.stride, 1, count_include_pad=False)
        q, k, v = self.projection(x).split([self.key_channels, self.key_channels, self.value_channels], 1)
        tables = None if self.rows is None or self.columns is None else (self.rows, self.columns)
        attention: Tensor = self.out(attend_everywhere(q, k, v, tables, self.num_heads))
        return attention
