"""Which pixels an output pixel looks at: the one place that knows index arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import memory_format_of

Border: TypeAlias = Literal["reflect", "zeros", "replicate"]
IntPair: TypeAlias = int | tuple[int, int]

BORDERS: tuple[Border, ...] = ("reflect", "zeros", "replicate")

FARTHEST = 2**31 - 1
"""The largest offset, stride and dilation, in pixels."""
NEAR = 64
"""Offsets up to so far beyond a map, and strides up to it, are taken as they are by :meth:`Neighborhood.on_map`."""


def as_pair(value: IntPair | Sequence[int], name: str, minimum: int = 1) -> tuple[int, int]:
    """Turn ``3`` or ``(3, 3)`` into ``(3, 3)`` and refuse anything else by name.

    Example:
        >>> as_pair(3, "stride")
        (3, 3)
    """
    pair = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(pair) != 2 or any(not _is_integer(v) or not minimum <= v <= FARTHEST for v in pair):
        raise ValueError(
            f"{name} must be an integer >= {minimum} or a pair of them (rows, columns), up to {FARTHEST}, got {value!r}"
        )
    return pair[0], pair[1]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_offset(offset: Any) -> tuple[int, int]:
    """``(dy, dx)``, from any integers, such as numpy's."""
    try:
        dy, dx = (operator.index(value) for value in offset)
    except (TypeError, ValueError):
        raise ValueError(f"an offset must be a pair of integers (dy, dx), got {offset!r}") from None
    if max(abs(dy), abs(dx)) > FARTHEST:
        raise ValueError(f"an offset must lie within {FARTHEST} pixels, got {offset!r}")
    return dy, dx


@dataclass(frozen=True)
class Neighborhood:
    """A set of offsets, a stride and a border rule.

    Output pixel ``(i, j)`` looks at the positions ``(i * stride + dy, j * stride + dx)`` for every offset
    ``(dy, dx)``, in the order given. The output measures ``ceil(H / stride)`` by ``ceil(W / stride)``, as that of a
    convolution padded by half its kernel.

    Args:
        offsets: ``(dy, dx)`` in pixels, each at most once.
        stride: distance between the centres of neighbouring outputs, in pixels.
        border: what a position outside the map reads. ``"reflect"`` mirrors at the edge pixel and bounces as often
            as needed (numpy's rule, so that a map of one pixel works), ``"zeros"`` reads zeros, ``"replicate"`` the
            nearest pixel.

    Raises:
        ValueError: no offsets, one that is no pair of integers or is there twice, a stride below 1, an offset or a
            stride beyond 2³¹ - 1, or an unknown border.

    Example:
        >>> nbhd = Neighborhood.window(3, stride=2)
        >>> len(nbhd), nbhd.output_size(7, 6)
        (9, (4, 3))
        >>> Neighborhood(((0, -1), (0, 1)), border="zeros").source(-1, 5) is None
        True
    """

    offsets: tuple[tuple[int, int], ...]
    stride: tuple[int, int] = (1, 1)
    border: Border = "reflect"

    def __post_init__(self) -> None:
        """Check the three fields."""
        offsets = tuple(map(_as_offset, self.offsets))
        if not offsets:
            raise ValueError("a Neighborhood needs at least one offset, got none")
        if len(set(offsets)) < len(offsets):
            twice = min(offset for offset in offsets if offsets.count(offset) > 1)
            raise ValueError(f"a Neighborhood has every offset once, got {twice} several times")
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(map(repr, BORDERS))}, got {self.border!r}")
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "stride", as_pair(self.stride, "stride"))
        object.__setattr__(self, "_flat", tuple(value for offset in offsets for value in offset))
        object.__setattr__(self, "_farthest", max(map(abs, self.flat_offsets)))
        object.__setattr__(self, "_near", max(self.farthest, *self.stride) <= NEAR)

    def __hash__(self) -> int:
        """Made once: a neighbourhood is looked up in tables at every call.

        At the first of them, and not when it is made, since torch.compile of torch 2.11 cannot trace ``hash``.
        """
        try:
            return self._hash  # type: ignore[attr-defined]
        except AttributeError:
            found = hash((self.offsets, self.stride, self.border))
            object.__setattr__(self, "_hash", found)
            return found

    @classmethod
    def window(
        cls,
        kernel_size: IntPair,
        *,
        dilation: IntPair = 1,
        stride: IntPair = 1,
        border: Border = "reflect",
    ) -> Neighborhood:
        """The offsets of a ``kernel_size`` window, row by row.

        An odd window is centred; an even one reaches one step further up and left, as a convolution with
        ``padding = dilation * (kernel_size // 2)`` does.

        Example:
            >>> Neighborhood.window((1, 3), dilation=2).offsets
            ((0, -2), (0, 0), (0, 2))
        """
        (kernel_h, kernel_w), (step_h, step_w) = as_pair(kernel_size, "kernel_size"), as_pair(dilation, "dilation")
        rows = [step_h * (m - kernel_h // 2) for m in range(kernel_h)]
        columns = [step_w * (m - kernel_w // 2) for m in range(kernel_w)]
        offsets = tuple((dy, dx) for dy in rows for dx in columns)
        return cls(offsets, as_pair(stride, "stride"), border)

    @classmethod
    def directions(
        cls, lengths: Sequence[int] = (1, 3, 5), *, stride: IntPair = 1, border: Border = "zeros"
    ) -> Neighborhood:
        """Steps of the given lengths in the eight directions: X-volution's pixel shifts (section 6.1.2).

        Length by length, the directions row by row from the upper left to the lower right.

        Args:
            lengths: L in pixels; a diagonal step goes L rows and L columns. The paper's 1, 3 and 5 give 24 offsets.
                0 is the pixel itself, one offset: (0, 1, 3, 5) is the region A of eq. 3, which contains its centre.
            stride: as that of the class.
            border: zeros lie beyond the border of a shifted map, as for its convolutions.

        Raises:
            ValueError: no length, a negative one, or one twice.

        Example:
            >>> Neighborhood.directions((2,)).offsets
            ((-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2))
            >>> len(Neighborhood.directions()), Neighborhood.directions((0, 1, 3, 5)).offsets[0]
            (24, (0, 0))
        """
        if not lengths or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in lengths):
            raise ValueError(f"lengths must be one or more integers >= 0, got {lengths!r}")
        steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
        offsets = [(length * dy, length * dx) for length in lengths for dy, dx in (steps if length else [(0, 0)])]
        return cls(tuple(offsets), as_pair(stride, "stride"), border)

    def __or__(self, other: Neighborhood) -> Neighborhood:
        """Every offset of either, row by row.

        Raises:
            ValueError: strides or borders that differ.

        Example:
            >>> merged = Neighborhood.window(3, border="zeros") | Neighborhood.window(5, dilation=2, border="zeros")
            >>> len(merged), len(merged | Neighborhood.directions())
            (33, 49)
        """
        if (self.stride, self.border) != (other.stride, other.border):
            raise ValueError(
                f"neighbourhoods that are joined must have one stride and border, got {self.stride}, {self.border!r} "
                f"and {other.stride}, {other.border!r}"
            )
        return Neighborhood(tuple(sorted({*self.offsets, *other.offsets})), self.stride, self.border)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def flat_offsets(self) -> tuple[int, ...]:
        """``dy, dx`` of every offset, one after the other."""
        return self._flat  # type: ignore[attr-defined]

    @property
    def farthest(self) -> int:
        """The largest distance of an offset along an axis, in pixels."""
        return self._farthest  # type: ignore[attr-defined]

    @property
    def is_near(self) -> bool:
        """Whether :meth:`on_map` changes nothing on any map."""
        return self._near  # type: ignore[attr-defined]

    def on_map(self, height: int, width: int) -> Neighborhood:
        """This neighbourhood on a map of that size, without offsets and strides far beyond it.

        An implementation pads a map, or counts in 32 bits; an offset of millions would ask too much of it. On one
        map there is a near offset that reads the same pixels. Those of up to 64 pixels more than the map, and strides
        of up to 64, stay as they are.

        Example:
            >>> far = Neighborhood(((0, 0), (10**8, 1)), stride=10**6)
            >>> far.on_map(5, 7)
            Neighborhood(offsets=((0, 0), (8, 1)), stride=(5, 7), border='reflect')
        """
        return self if self.is_near else _on_map(self, int(height), int(width))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        return strided_size(height, self.stride[0]), strided_size(width, self.stride[1])

    def centres(self, x: Tensor) -> Tensor:
        """The pixels of ``[B, C, H, W]`` at which windows are centred: ``x[..., ::stride, ::stride]``.

        By index and not by slice: a slice with a step, or a pooling, ties an exported size to odd or even numbers.

        Example:
            >>> Neighborhood.window(3, stride=2).centres(torch.zeros(1, 1, 5, 6)).shape
            torch.Size([1, 1, 3, 3])
        """
        if self.stride == (1, 1):
            return x
        out_h, out_w = self.output_size(x.shape[-2], x.shape[-1])
        rows, columns = (
            torch.arange(out, device=x.device) * s for out, s in zip((out_h, out_w), self.stride, strict=True)
        )
        centres = x.index_select(2, rows).index_select(3, columns)
        return centres.contiguous(memory_format=memory_format_of(x))

    def source(self, position: int, size: int) -> int | None:
        """The pixel that a position on an axis of ``size`` pixels reads; None reads zero.

        Example:
            >>> [Neighborhood.window(3).source(p, 3) for p in range(-4, 6)]
            [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]
        """
        if 0 <= position < size:
            return position
        if self.border == "zeros":
            return None
        if self.border == "replicate":
            return 0 if position < 0 else size - 1
        if size == 1:
            return 0
        while not 0 <= position < size:
            position = -position if position < 0 else 2 * (size - 1) - position
        return position

    def sources(self, positions: Tensor, size: int) -> Tensor:
        """:meth:`source` for a tensor of positions; outside a ``"zeros"`` border the answer is -1."""
        if self.border == "zeros":
            return torch.where((positions >= 0) & (positions < size), positions, -1)
        if self.border == "replicate":
            return positions.clamp(0, size - 1)
        # by a tensor: ONNX has no remainder by a size that is not known yet
        period = (torch.zeros_like(positions) + 2 * (size - 1)).clamp(min=1)
        folded = positions.remainder(period)
        return torch.minimum(folded, period - folded)

    def reach(self, axis: int) -> tuple[int, int]:
        """How far the offsets reach beyond the map before and after it, on axis 0 (rows) or 1 (columns), in pixels."""
        along = [offset[axis] for offset in self.offsets]
        return max(0, -min(along)), max(0, *along)

    def shares_on_map(self, axis: int, size: int) -> dict[int, float]:
        """For each distance along an axis of ``size`` pixels, how many of all outputs find a pixel there.

        Example:
            >>> Neighborhood(((0, 0), (2, 0))).shares_on_map(0, 4)
            {0: 1.0, 2: 0.5}
        """
        centres = range(0, size, self.stride[axis])
        distances = sorted({offset[axis] for offset in self.offsets})
        return {d: sum(0 <= centre + d < size for centre in centres) / len(centres) for d in distances}

    def padded_sources(self, axis: int, size: int, device: torch.device) -> Tensor:
        """The pixel that each position of the map, extended by :meth:`reach`, reads; -1 reads zero."""
        before, after = self.reach(axis)
        return self.sources(torch.arange(-before, size + after, device=device), size)

    def pad(self, x: Tensor) -> Tensor:
        """``[..., H, W]`` extended by :meth:`reach` on all sides under the border rule."""
        if self.border == "zeros":
            return F.pad(x, [*self.reach(1), *self.reach(0)])
        for axis in (0, 1):
            if self.reach(axis) != (0, 0):
                x = x.index_select(axis - 2, self.padded_sources(axis, x.shape[axis - 2], x.device))
        return x

    def unpad(self, padded: Tensor, height: int, width: int) -> Tensor:
        """The adjoint of :meth:`pad`: every extended position is added to the pixel that it reads."""
        if self.border == "zeros":
            return padded.narrow(-2, self.reach(0)[0], height).narrow(-1, self.reach(1)[0], width)
        for axis, size in ((0, height), (1, width)):
            if self.reach(axis) != (0, 0):
                padded = put(padded, axis - 2, self.padded_sources(axis, size, padded.device), size)
        return padded

    def views(self, padded: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """For every offset, the view of a padded ``[..., H, W]`` map that holds each output pixel's neighbour."""
        (top, _), (left, _) = self.reach(0), self.reach(1)
        (step_h, step_w), (out_h, out_w) = self.stride, self.output_size(height, width)
        for dy, dx in self.offsets:
            rows = slice(top + dy, top + dy + (out_h - 1) * step_h + 1, step_h)
            columns = slice(left + dx, left + dx + (out_w - 1) * step_w + 1, step_w)
            yield padded[..., rows, columns]


@lru_cache(maxsize=256)
def _on_map(nbhd: Neighborhood, height: int, width: int) -> Neighborhood:
    rows, columns = (_brought_near(nbhd, axis, size) for axis, size in ((0, height), (1, width)))
    stride = near_step(nbhd.stride[0], height), near_step(nbhd.stride[1], width)
    return Neighborhood(tuple((rows[dy], columns[dx]) for dy, dx in nbhd.offsets), stride, nbhd.border)


def clamp_size(size: Any, low: int, high: int | None = None) -> Any:
    """A size between bounds; it may be symbolic, as under ``torch.export``, or a tensor, as under ``torch.jit.trace``.

    Example:
        >>> clamp_size(7, 1, 5), clamp_size(0, 1)
        (5, 1)
    """
    if isinstance(size, Tensor):
        return size.clamp(low, high)
    if isinstance(size, int):  # torch.compile of 2.11 takes no sym_max of a number
        return max(size, low) if high is None else min(max(size, low), high)
    clamped: Any = torch.sym_max(size, low)
    return clamped if high is None else torch.sym_min(clamped, high)


def strided_size(size: Any, stride: Any) -> Any:
    """``ceil(size / stride)``, written as a convolution's size formula is.

    Example:
        >>> strided_size(7, 2), strided_size(1, 4)
        (4, 1)
    """
    return (size - 1) // stride + 1


def same_padding(kernel_size: Any, dilation: Any) -> tuple[int, int]:
    """The zeros on each side with which a convolution of an odd kernel gives ``ceil(size / stride)`` outputs.

    Example:
        >>> same_padding((3, 5), (1, 2))
        (1, 4)
    """
    return dilation[0] * (int(kernel_size[0]) // 2), dilation[1] * (int(kernel_size[1]) // 2)


def near_step(step: int, size: int) -> int:
    """A stride, or a dilation between zeros, that has the same effect on ``size`` pixels: none is longer than they."""
    return step if step <= NEAR else min(step, size)


def _brought_near(nbhd: Neighborhood, axis: int, size: int) -> dict[int, int]:
    """For every distance along an axis of ``size`` pixels a near one that reads the same, no two of them alike."""
    distances = {offset[axis] for offset in nbhd.offsets}
    near = {distance: distance for distance in distances if abs(distance) <= size + NEAR}
    taken = set(near)
    for far in sorted(distances - taken):
        if nbhd.border == "reflect":
            period = max(2 * (size - 1), 1)
            found, step = far % period, period
        else:  # from here on, every position lies beyond the border
            found, step = (size, 1) if far > 0 else (-size, -1)
        while found in taken:
            found += step
        taken.add(found)
        near[far] = found
    return near


def take(x: Tensor, dim: int, sources: Tensor) -> Tensor:
    """``x`` indexed along ``dim``; a source of -1 gives zeros."""
    taken = x.index_select(dim, sources.clamp(min=0))
    outside = sources < 0
    return taken.index_fill_(dim, outside.nonzero().flatten(), 0) if bool(outside.any()) else taken


def put(x: Tensor, dim: int, sources: Tensor, size: int) -> Tensor:
    """The adjoint of :func:`take`: slices of ``x`` added up at their sources along an axis of ``size``."""
    kept = (sources >= 0).nonzero().flatten()
    if len(kept) < len(sources):
        x, sources = x.index_select(dim, kept), sources[kept]
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape).index_add_(dim, sources, x)
