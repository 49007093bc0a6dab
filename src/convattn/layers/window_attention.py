"""Window attention: q, k and v maps in, a map out (ACmix eq. 19; Swin)."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Layer
from convattn.layers._checks import check_counts, check_division
from convattn.layers._drop_in import takes_maps
from convattn.ops._dispatch import dense_attention
from convattn.ops._recording import map_size
from convattn.ops.neighborhood import IntPair, as_pair, clamp_size


class WindowAttention(Layer):
    r"""Multi-head attention inside the windows of a grid, with a learned bias for every relative position.

    .. math:: F(i) = \sum_{j \in w(i)} \mathrm{softmax}_j\left(\frac{q_i \cdot k_j}{\sqrt{d}} + b_{i-j}\right) v_j

    w(i) is the window of pixel i: rows ``shift + n * window`` to ``shift + (n + 1) * window``, clipped to the map, for
    every integer n, columns likewise. That holds for any size: what a window has beyond the map is masked out and has
    no influence (timm's and Microsoft's Swin let zeros that were padded before the projection take part there, so
    their results differ on sizes that are no multiple of the window, and are the same on all others). A map that one
    window covers along an axis is not shifted along it. The window, and with it the bias table, never shrinks.

    Windows and masks are made from the size at every call, so an exported program takes any size too.

    Source: Liu et al., *Swin Transformer*, ICCV 2021.

    Args:
        channels: C of q, k, v and of the output.
        window_size: rows and columns of a window.
        num_heads: N; must divide ``channels``.
        shift: how far the grid is moved down and right, less than a window; Swin's every second block has
            ``window_size // 2``.
        output_projection: a learned linear layer over the channels follows (``proj``), as in Swin: what ACmix's α
            multiplies is the attention after it.

    Raises:
        ValueError: channels that the heads do not divide, a shift of a window or more; in ``forward``, maps of
            another shape.

    Example:
        >>> import torch
        >>> path = WindowAttention(8, window_size=4, num_heads=2, shift=2)
        >>> q = k = v = torch.randn(1, 8, 9, 5)
        >>> path(q, k, v).shape
        torch.Size([1, 8, 9, 5])
    """

    shown = ("channels", "window_size", "num_heads", "shift")

    def __init__(
        self,
        channels: int,
        *,
        window_size: IntPair = 7,
        num_heads: int = 4,
        shift: IntPair = 0,
        output_projection: bool = False,
        **made: Unpack[Factory],
    ) -> None:
        super().__init__()
        made = self._factory(made)
        check_division(channels, num_heads)
        self.channels, self.num_heads = channels, num_heads
        self.window_size = as_pair(window_size, "window_size")
        self.shift = (shift, shift) if isinstance(shift, int) else (shift[0], shift[1])
        if any(not 0 <= moved < window for moved, window in zip(self.shift, self.window_size, strict=True)):
            raise ValueError(f"shift must be at least 0 and less than window_size={self.window_size}, got {self.shift}")
        offsets = (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, num_heads, **made))
        self.proj = nn.Linear(channels, channels, **made) if output_projection else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table and the linear layer as Swin does."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        if self.proj is not None:
            _start_linear(self.proj)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, C, H, W]`` three times -> ``[B, C, H, W]``."""
        if not q.shape == k.shape == v.shape or v.dim() != 4 or v.shape[1] != self.channels:
            shapes = ", ".join(str(list(part.shape)) for part in (q, k, v))
            raise ValueError(f"q, k and v must all be [B, {self.channels}, H, W], got {shapes}")
        batch, size = v.shape[0], map_size(v)
        moved = self.effective_shift(*size)
        rows, columns = (
            _windows(length, window, distance, v.device)
            for length, window, distance in zip(size, self.window_size, moved, strict=True)
        )
        q, k, v = (self._partition(part, rows, columns) for part in (q, k, v))
        bias = self.position_bias().to(q.dtype)
        if rows.whole and columns.whole:
            q, k, v = (self._as_heads(part, 1, rows, columns) for part in (q, k, v))
            mask = bias.unsqueeze(1).repeat(batch, 1, 1, 1)
        else:
            # windows lie beside the heads, so that every image of the batch shares the mask
            q, k, v = (self._as_heads(part, self.num_heads, rows, columns) for part in (q, k, v))
            forbidden = _forbidden(rows, columns)
            mask = bias.unsqueeze(1).masked_fill(forbidden, -torch.inf).flatten(0, 1).unsqueeze(0)
        # a given scale is a number in a recorded program, else there are steps that compute it
        out = dense_attention(q, k, v, mask, scale=(self.channels // self.num_heads) ** -0.5)
        return self._merge(out, rows, columns)

    def effective_shift(self, height: int, width: int) -> tuple[int, int]:
        """How far the grid is moved on a map of that size: 0 along an axis that one window covers."""
        # arithmetic in place of a condition: the size may be symbolic
        rows, columns = (
            moved and moved * clamp_size((size - 1) // window, 0, 1)
            for size, window, moved in zip((height, width), self.window_size, self.shift, strict=True)
        )
        return rows, columns

    def position_bias(self) -> Tensor:
        """What is added to the logits of every window, ``[N, pixels, pixels]``; pixels row by row."""
        rows, columns = self.window_size
        device = self.relative_position_bias_table.device
        row = _differences(rows, device)[:, None, :, None] * (2 * columns - 1)
        index = row + _differences(columns, device)[None, :, None, :]
        bias: Tensor = self.relative_position_bias_table.index_select(0, index.flatten())
        return bias.t().reshape(self.num_heads, rows * columns, rows * columns)

    def _partition(self, part: Tensor, rows: _Windows, columns: _Windows) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, N, windows down, windows across, window's rows, window's columns, C / N]``."""
        part = part.permute(0, 2, 3, 1)
        if rows.order is not None:
            part = part.index_select(1, rows.order)
        if columns.order is not None:
            part = part.index_select(2, columns.order)
        head_dim = self.channels // self.num_heads
        shape = (-1, rows.number, rows.size, columns.number, columns.size, self.num_heads, head_dim)
        return part.reshape(shape).permute(0, 5, 1, 3, 2, 4, 6).clone(memory_format=torch.contiguous_format)

    def _as_heads(self, part: Tensor, beside: int, rows: _Windows, columns: _Windows) -> Tensor:
        """A partition -> ``[-1, beside * windows, pixels of a window, C / N]``: so many heads beside the windows."""
        pixels, head_dim = rows.size * columns.size, self.channels // self.num_heads
        return part.reshape(-1, beside * rows.number * columns.number, pixels, head_dim)

    def _merge(self, out: Tensor, rows: _Windows, columns: _Windows) -> Tensor:
        """The inverse of :meth:`_partition` and of its flattening, then the linear layer."""
        head_dim = self.channels // self.num_heads
        shape = (-1, self.num_heads, rows.number, columns.number, rows.size, columns.size, head_dim)
        out = out.reshape(shape).permute(0, 2, 4, 3, 5, 1, 6).clone(memory_format=torch.contiguous_format)
        out = out.reshape(-1, rows.number * rows.size, columns.number * columns.size, self.channels)
        if rows.back is not None:
            out = out.index_select(1, rows.back)
        if columns.back is not None:
            out = out.index_select(2, columns.back)
        out = (out if self.proj is None else self.proj(out)).permute(0, 3, 1, 2)
        # of two layouts that meet in a sum, torch.export would want to know which one it gives
        return out if isinstance(rows.number, int) else out.clone(memory_format=torch.contiguous_format)


class WindowAttention2d(WindowAttention):
    """Window attention with its projections: what every block of Swin holds.

    The parameters are named as in timm's and Microsoft's Swin: ``qkv``, ``relative_position_bias_table``, ``proj``.

    Args:
        channels: C, in and out.
        window_size: rows and columns of a window.
        num_heads: N; must divide ``channels``.
        shift: how far the grid of windows is moved, see :class:`WindowAttention`.

    Raises:
        ValueError: as :class:`WindowAttention`; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> WindowAttention2d(16, num_heads=2)(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        window_size: IntPair = 7,
        num_heads: int = 4,
        shift: IntPair = 0,
        **made: Unpack[Factory],
    ) -> None:
        check_counts(channels=channels)
        super().__init__(
            channels, window_size=window_size, num_heads=num_heads, shift=shift, output_projection=True, **made
        )
        self.in_channels = channels
        self.qkv = nn.Linear(channels, 3 * channels, **made)
        _start_linear(self.qkv)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; ``[C, H, W]`` likewise."""
        q, k, v = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).split(self.channels, 1)
        return super().forward(q, k, v)


def _start_linear(layer: nn.Linear) -> None:
    """Draw a linear layer as Swin does."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


def _differences(size: int, device: torch.device) -> Tensor:
    """i - j of all positions i and j, from 0 on, ``[size, size]``."""
    positions = torch.arange(size, device=device)
    return positions[:, None] - positions[None, :] + (size - 1)


class _Windows(NamedTuple):
    """The windows along one axis.

    The axis is filled up to whole windows and rolled, so that the two that its ends cut share one window.
    """

    number: int
    size: int
    order: Tensor | None
    """The position at each place, ``[number * size]``; past the end the last; None: they are in order."""
    back: Tensor | None
    """The place of each position."""
    apart: Tensor
    """Which places of a window may not attend to which, ``[number, size, size]``."""

    @property
    def whole(self) -> bool:
        """Whether all places of every window may attend to each other."""
        return self.order is None


def _windows(length: int, size: int, moved: int, device: torch.device) -> _Windows:
    count = (length - 1) // size + 1
    if not isinstance(count, int):
        # torch.export would tell one window from more; the second may be empty
        count = clamp_size(count, 2)
    if _is_sure(length % size == 0) and _is_sure(moved == 0):
        return _Windows(count, size, None, None, torch.zeros(count, size, size, dtype=torch.bool, device=device))
    whole = count * size
    position = torch.arange(whole, device=device) + moved
    position = torch.where(position < whole, position, position - whole)
    # positions that the roll left in order, positions that it brought from the front, places past the end
    kind = (position < moved).int() + 2 * (position >= length).int()
    kind = kind.unflatten(0, (count, size))
    apart = kind[:, :, None] != kind[:, None, :]
    back = torch.arange(length, device=device) - moved
    back = torch.where(back < 0, back + whole, back)
    return _Windows(count, size, position.clamp(max=length - 1), back, apart)


def _forbidden(rows: _Windows, columns: _Windows) -> Tensor:
    """Which pixel of a window may not attend to which, ``[windows, pixels, pixels]``."""
    row, column = rows.apart[:, None, :, None, :, None], columns.apart[None, :, None, :, None, :]
    return (row | column).flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _is_sure(condition: bool | torch.SymBool) -> bool:
    """A condition on sizes; False where it is symbolic and not true for every size."""
    if isinstance(condition, bool):
        return condition
    if isinstance(condition, Tensor):  # under torch.jit.trace, which would record the answer for this size alone
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))
