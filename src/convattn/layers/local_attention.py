"""Attention over a window around every pixel: as a path from q, k and v maps, and with its projection."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Geometry, Layer, StridedLayer
from convattn.layers._checks import check_division, heads_of
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers.folding import batch_norm_line, scale_values
from convattn.ops import Neighborhood, attend
from convattn.ops._layout import accumulation_dtype
from convattn.ops.acmix.inputs import linear_position
from convattn.ops.neighborhood import IntPair, as_pair

PositionKind: TypeAlias = Literal["linear", "table"]


class LinearPosition(Layer):
    r"""A position term linear in the pixel coordinates: :math:`q_i \cdot (p_i - p_j)`, :math:`p = W\,(x, y)`.

    Coordinates run from -1 to 1 over the map, as in the authors' code, so what one pixel of distance means depends on
    the map's size. :math:`q_i \cdot p_i` is constant over a softmax and a constant in p cancels: the term is exactly
    ``k - p``, and p needs no bias.

    Args:
        head_dim: channels of one head; all heads share p.

    Example:
        >>> import torch
        >>> LinearPosition(4)(5, 7, like=torch.zeros(1)).shape
        torch.Size([4, 5, 7])
    """

    def __init__(self, head_dim: int, **made: Unpack[Factory]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim, 2, **self._factory(made)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as the 1x1 convolution over the two coordinates would be drawn."""
        nn.init.uniform_(self.weight, -(2**-0.5), 2**-0.5)

    def forward(self, height: int, width: int, *, like: Tensor) -> Tensor:
        """p at every pixel, ``[head_dim, H, W]``, on the device of ``like``."""
        weight = self.weight.to(like.device)
        return linear_position(weight.to(accumulation_dtype(weight.dtype)), height, width)


class TablePosition(Layer):
    """A learned vector for every offset, of a row part and a column part (stand-alone self-attention, section 3.1).

    Args:
        kernel_size: rows and columns of the window.
        head_dim: channels of one head; the first half holds the row part.
        num_heads: every head has a table of its own.

    Example:
        >>> TablePosition((7, 7), head_dim=16, num_heads=4)().shape
        torch.Size([4, 49, 16])
    """

    def __init__(self, kernel_size: tuple[int, int], *, head_dim: int, num_heads: int, **made: Unpack[Factory]) -> None:
        super().__init__()
        rows, columns = kernel_size
        made = self._factory(made)
        self.row = nn.Parameter(torch.empty(num_heads, rows, head_dim // 2, **made))
        self.column = nn.Parameter(torch.empty(num_heads, columns, head_dim - head_dim // 2, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random vectors."""
        for table in (self.row, self.column):
            nn.init.normal_(table, std=0.02)

    def forward(self) -> Tensor:
        """The vectors ``[N, K, head_dim]``, offsets row by row."""
        rows, columns = self.row.shape[1], self.column.shape[1]
        row = self.row.unsqueeze(2).expand(-1, -1, columns, -1)
        column = self.column.unsqueeze(1).expand(-1, rows, -1, -1)
        return torch.cat([row, column], -1).flatten(1, 2)


class LocalAttention(StridedLayer):
    r"""Attention of every ``stride``-th pixel over the window around it (ACmix eq. 9-12; SASA).

    See :func:`convattn.ops.attend`. The border is reflected.

    Args:
        channels: C of q, k, v and of the output.
        kernel_size: the window, ``k_a``.
        num_heads: N.
        stride: distance between queries.
        dilation: distance between the keys of a window.
        position: ``"linear"`` (the authors' code, :class:`LinearPosition`), ``"table"`` (:class:`TablePosition`) or
            None.

    Raises:
        ValueError: channels that the heads do not divide, an unknown position term.

    Example:
        >>> import torch
        >>> path = LocalAttention(8, num_heads=2, stride=2)
        >>> q = k = v = torch.randn(1, 8, 9, 9)
        >>> path(q, k, v).shape
        torch.Size([1, 8, 5, 5])
    """

    shown = ("neighborhood", "num_heads", "stride")

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: IntPair = 7,
        num_heads: int = 4,
        position: PositionKind | None = "linear",
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(**geometry)
        made = self._factory(geometry)
        check_division(channels, num_heads)
        self.num_heads = num_heads
        self.neighborhood = Neighborhood.window(kernel_size, dilation=self.dilation, stride=self.stride)
        head_dim = channels // num_heads
        self.position: LinearPosition | TablePosition | None
        if position == "linear":
            self.position = LinearPosition(head_dim, **made)
        elif position == "table":
            window = as_pair(kernel_size, "attention_kernel_size")
            self.position = TablePosition(window, head_dim=head_dim, num_heads=num_heads, **made)
        elif position is None:
            self.position = None
        else:
            raise ValueError(f"position must be 'linear', 'table' or None, got {position!r}")

    @property
    def position_weight(self) -> Tensor | None:
        """The weight of a linear position; None for any other."""
        position = self.position
        return position.weight if isinstance(position, LinearPosition) else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, C, H, W]`` three times -> ``[B, C, ceil(H/s), ceil(W/s)]``."""
        key_offsets = None
        if isinstance(self.position, LinearPosition):
            p = self.position(k.shape[-2], k.shape[-1], like=k)
            k = (k.unflatten(1, (self.num_heads, -1)) - p.to(k.dtype)).flatten(1, 2)
        elif self.position is not None:
            key_offsets = self.position()
        queries = self.neighborhood.centres(q)
        return attend(queries, k, v, self.neighborhood, num_heads=self.num_heads, key_offsets=key_offsets)


class LocalAttention2d(DropIn):
    """Stand-alone local self-attention: the attention path of :class:`ACmix` alone, with its projection.

    Source: Ramachandran et al., *Stand-Alone Self-Attention in Vision Models*, NeurIPS 2019 (SASA in ACmix's
    comparisons).

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the window.
        num_heads: N; must divide ``out_channels``. None: 4, or the divisor that is nearest to 4.
        stride: distance between queries.
        dilation: distance between the keys of a window.
        position: ``"table"`` (as in the source), ``"linear"`` (as in ACmix) or None.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> LocalAttention2d(16, 32, num_heads=8)(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 32, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 7,
        num_heads: int | None = None,
        position: PositionKind | None = "table",
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        num_heads = heads_of(out_channels, num_heads)
        self.projection = nn.Conv2d(in_channels, 3 * out_channels, 1, **self._factory(geometry))
        self.attention = LocalAttention(
            out_channels, kernel_size=kernel_size, num_heads=num_heads, position=position, **geometry
        )

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        return self.attention(*self.projection(x).chunk(3, 1))

    @property
    def is_average(self) -> bool:
        """Whether outputs are averages of values: weights that sum to one, over pixels of the map alone."""
        return type(self.attention) is LocalAttention and self.attention.neighborhood.border != "zeros"

    def absorb(self, batch_norm: nn.Module) -> None:
        """Take over the batch norm (in eval mode) that follows: an average scales and shifts as its values do.

        Raises:
            ValueError: a batch norm without running statistics or of other channels.
        """
        scale_values(self.projection, *batch_norm_line(batch_norm, self.out_channels))
