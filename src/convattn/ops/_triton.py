"""What the Triton backends share: a neighbourhood as index tables on the device, memory layout, launch options.

Nothing here imports ``triton``, so that the package imports where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops.neighborhood import Neighborhood

FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}


@dataclass(frozen=True, eq=False)
class Tables:
    """A neighbourhood on a map of one size, so that no kernel knows a border rule; all int32.

    The extended map is the map and what the offsets reach beyond it; :meth:`Neighborhood.padded_sources` says which
    pixel each of its positions reads.

    Args:
        taps: ``[K, 2]`` row and column of every offset in the extended map, seen from pixel (0, 0).
        rows: the pixel row that every row of the extended map reads, -1 outside a ``"zeros"`` border.
        columns: the same for columns.
        row_readers: ``[shifts, H, R]`` the rows of outputs that read each pixel row through an offset of that row
            (as in ``taps``), filled up with -1; several where a border folds them onto one pixel.
        column_readers: the same for columns.
        row_most: ``[H]`` how many of the R there are at most, over all shifts.
        column_most: the same for columns.
    """

    taps: Tensor
    rows: Tensor
    columns: Tensor
    row_readers: Tensor
    column_readers: Tensor
    row_most: Tensor
    column_most: Tensor

    @property
    def gathered(self) -> tuple[Tensor, ...]:
        """What a kernel over outputs reads."""
        return self.taps, self.rows, self.columns

    @property
    def scattered(self) -> tuple[Tensor, ...]:
        """What a kernel over pixels of the map reads."""
        return self.taps, self.row_readers, self.column_readers, self.row_most, self.column_most

    @property
    def folds(self) -> tuple[int, int]:
        """R of rows and of columns."""
        return self.row_readers.shape[2], self.column_readers.shape[2]


P = ParamSpec("P")
T = TypeVar("T")
_IN_GRAPHS: dict[int, object] = {}


def kept_on_gpu(function: Callable[P, T]) -> Callable[P, T]:
    """``lru_cache`` for tables on a GPU. Those that a CUDA graph is captured with are kept for good: it reads them."""
    cached = lru_cache(maxsize=256)(function)

    @wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        found = cached(*args, **kwargs)  # type: ignore[arg-type]
        if _dispatch.is_capturing_a_graph():
            _IN_GRAPHS[id(found)] = found
        return found

    return kept


@kept_on_gpu
def tables(nbhd: Neighborhood, size: tuple[int, int], device: torch.device) -> Tables:
    """The index tables of a neighbourhood on a map of ``size``; made on the host once and kept."""
    (top, _), (left, _) = nbhd.reach(0), nbhd.reach(1)
    taps = torch.tensor([(top + dy, left + dx) for dy, dx in nbhd.offsets])
    sources = [nbhd.padded_sources(axis, size[axis], torch.device("cpu")) for axis in (0, 1)]
    outputs = nbhd.output_size(*size)
    found = [_readers(sources[axis], size[axis], outputs[axis], nbhd.stride[axis]) for axis in (0, 1)]
    most = [(readers >= 0).sum(2).amax(0) for readers in found]
    return Tables(*(part.to(device, torch.int32) for part in (taps, *sources, *found, *most)))


def _readers(sources: Tensor, size: int, outputs: int, stride: int) -> Tensor:
    """The outputs that read each pixel through each shift: ``[shifts, size, R]``, -1 where there are fewer than R.

    Example:
        >>> _readers(torch.tensor([1, 0, 1, 2, 1]), 3, 3, 1)[0].tolist()
        [[1, -1], [0, 2], [-1, -1]]
    """
    shifts = len(sources) - size + 1
    found: list[list[list[int]]] = [[[] for _ in range(size)] for _ in range(shifts)]
    pixels = sources.tolist()
    for shift in range(shifts):
        for output in range(outputs):
            pixel = pixels[output * stride + shift]
            if pixel >= 0:
                found[shift][pixel].append(output)
    folds = max(len(readers) for by_pixel in found for readers in by_pixel)
    return torch.tensor([[r + [-1] * (folds - len(r)) for r in by_pixel] for by_pixel in found])


def map_strides(x: Tensor) -> tuple[int, int, int]:
    """Image, row and column stride of a channels_last map."""
    return x.stride(0), x.stride(2), x.stride(3)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``.

    Example:
        >>> [next_power_of_two(n) for n in (1, 3, 16, 17)]
        [1, 4, 16, 32]
    """
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Blocks:
    """A program of the offset-wise kernels: ``pixels`` pixels of ``heads`` heads, ``channels`` of each."""

    pixels: int
    heads: int
    channels: int

    def grid(self, num_heads: int, height: int, width: int) -> tuple[int, int]:
        """Blocks of heads and tiles of pixels that cover a map."""
        return -(-num_heads // self.heads), -(-height * width // self.pixels)

    def constants(self, head_dim: int) -> dict[str, int | bool]:
        """The compile-time constants of a launch."""
        sizes = {"PIXELS": self.pixels, "HEADS": self.heads, "CHANNELS": self.channels}
        return {"D": head_dim, **sizes, "num_warps": 4, **FUSED_MULTIPLY_ADD}

    @classmethod
    def choose(cls, num_heads: int, head_dim: int) -> Blocks:
        """About 64 adjacent channels, which fill cache lines, and 16 numbers a thread."""
        channels = min(next_power_of_two(head_dim), 64)
        heads = min(next_power_of_two(num_heads), 64 // channels)
        return cls(max(16, min(128, 2048 // (channels * heads))), heads, channels)


def run_over_heads(
    kernel: Any, tensors: tuple[Tensor, Tensor, Tensor], index: tuple[Tensor, ...], num_heads: int, *sizes: int
) -> None:
    """Launch a kernel over blocks of heads and tiles of pixels of its output, some channels of a head at a time.

    Args:
        kernel: of ``aggregate`` or ``scatter``.
        tensors: weights, the map that it reads and the output.
        index: tables of the neighbourhood.
        num_heads: N.
        sizes: what the kernel takes after the output's height and width.
    """
    _, x, out = tensors
    batch, channels, height, width = out.shape
    cut = Blocks.choose(num_heads, channels // num_heads)
    blocks, tiles = cut.grid(num_heads, height, width)
    with torch.cuda.device_of(x):
        kernel[(batch * blocks * tiles, -(-channels // num_heads // cut.channels))](
            *tensors,
            *index,
            *map_strides(x),
            *map_strides(out),
            *(num_heads, blocks, tiles, height, width, *sizes),
            **cut.constants(channels // num_heads),
        )
