"""How the window kernels cut a map: how many pixels a program takes, and how much of their halo at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import torch

from convattn.ops._triton import next_power_of_two

Kind: TypeAlias = Literal["forward", "query", "key"]

LEAST_PIXELS = 16  # that a product of the tensor cores takes
PROGRAMS_TO_FILL = 1024  # about two waves of the programs that a large GPU holds at once


@dataclass(frozen=True)
class Step:
    """Halo pixels that a group takes at a time, stages of the pipeline, groups and warps, a group's own pixels."""

    pixels: int
    stages: int
    groups: int = 4
    warps: int = 4
    own: int = LEAST_PIXELS


@dataclass(frozen=True)
class Steps:
    """How a halo is walked: in one step where it fits ``whole``, whose counts are then made once for all heads."""

    whole: Step
    parts: Step

    def of(self, halo: int) -> Step:
        """The step for a halo of so many pixels."""
        return self.whole if halo <= self.whole.pixels else self.parts


# By kernel and head_dim: the fastest on an H200 in bfloat16, 7x7 windows, batch 64, of those that fit a consumer GPU's
# shared memory and hardly spill registers (tests/ops/test_triton_compile.py).
HALF_STEPS: dict[Kind, dict[int, Steps]] = {
    "forward": {
        16: Steps(Step(32, 2, 1, 2, 32), Step(32, 2, 1, 2, 32)),
        32: Steps(Step(128, 2, 1, 1), Step(32, 2, 1, 1)),
        64: Steps(Step(32, 2, 2, 2), Step(32, 2, 2, 2)),
        128: Steps(Step(16, 1, 4, 4), Step(16, 1, 4, 4)),
    },
    "query": {
        16: Steps(Step(128, 2, 1, 1), Step(32, 2, 1, 1)),
        32: Steps(Step(128, 2, 1, 1), Step(32, 1, 1, 1)),
        64: Steps(Step(32, 2, 2, 2), Step(32, 2, 2, 2)),
        128: Steps(Step(16, 2, 4, 4), Step(16, 2, 4, 4)),
    },
    "key": {
        16: Steps(Step(32, 1, 1, 1), Step(32, 1, 1, 1)),
        32: Steps(Step(32, 2, 1, 1), Step(32, 2, 1, 1)),
        64: Steps(Step(32, 2, 2, 2), Step(32, 2, 2, 2)),
        128: Steps(Step(16, 1, 2, 2), Step(16, 1, 2, 2)),
    },
}
_FLOAT: dict[Kind, dict[int, Step]] = {
    "forward": {16: Step(32, 1), 32: Step(32, 1), 64: Step(16, 1, 2), 128: Step(16, 1, 2)},
    "query": {16: Step(32, 1), 32: Step(16, 1), 64: Step(16, 1, 2), 128: Step(16, 1, 1)},
    "key": {16: Step(16, 1), 32: Step(16, 1), 64: Step(16, 1, 2), 128: Step(16, 1, 1)},
}
# In float32 not tuned on a GPU: the largest that do not spill.
FLOAT_STEPS: dict[Kind, dict[int, Steps]] = {
    kind: {dim: Steps(step, step) for dim, step in table.items()} for kind, table in _FLOAT.items()
}


@dataclass(frozen=True)
class Tile:
    """A program's shape: ``rows`` x ``cols`` pixels in each of ``step.groups`` groups, one above the other.

    A group reads its halo of ``halo`` pixels, ``halo_cols`` in a row, in ``steps`` steps of ``pixels`` pixels, row
    after row without gaps, for ``heads`` heads one after the other.
    """

    step: Step
    rows: int
    cols: int
    halo: int
    halo_cols: int
    pixels: int
    heads: int = 1

    @property
    def steps(self) -> int:
        """Steps that the halo takes."""
        return -(-self.halo // self.pixels)

    @property
    def logits(self) -> int:
        """Logits computed per program and head."""
        return self.step.groups * self.rows * self.cols * self.steps * self.pixels

    def programs(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many rows and columns of tiles cover a map."""
        return -(-size[0] // (self.step.groups * self.rows)), -(-size[1] // self.cols)

    def constants(self) -> dict[str, int]:
        """As the kernels' compile-time constants and launch options."""
        return {
            "HEADS": self.heads,
            "G": self.step.groups,
            "TH": self.rows,
            "TW": self.cols,
            "HALO": self.halo,
            "LW": self.halo_cols,
            "S": self.pixels,
            "STEPS": self.steps,
            "num_warps": self.step.warps,
            "num_stages": self.step.stages,
        }


@dataclass(frozen=True)
class Work:
    """What one kernel has to do.

    Args:
        kind: the kernel.
        radius: of the window.
        stride: of the outputs.
        size: of the map.
        out_size: of the output.
        head_dim: channels of a head.
        heads: heads of an image.
        images: in the batch.
        dtype: of the maps.
    """

    kind: Kind
    radius: int
    stride: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    head_dim: int
    heads: int
    images: int
    dtype: torch.dtype

    @property
    def own(self) -> tuple[int, int]:
        """The map that the programs share out."""
        return self.size if self.kind == "key" else self.out_size

    @property
    def halo(self) -> tuple[int, int]:
        """The map that they read around their own pixels."""
        return self.out_size if self.kind == "key" else self.size

    def reach(self, pixels: int) -> int:
        """Halo pixels that a run of ``pixels`` own pixels needs along one axis."""
        if self.kind == "key":
            return (pixels - 1 + 2 * self.radius) // self.stride + 1
        return (pixels - 1) * self.stride + 1 + 2 * self.radius

    @property
    def padded_dim(self) -> int:
        """Channels of a head as the products take them."""
        return max(next_power_of_two(self.head_dim), 16)


def _tile(work: Work, rows: int, steps: Steps) -> Tile:
    cols = steps.whole.own // rows
    halo_rows, halo_cols = min(work.reach(rows), work.halo[0]), min(work.reach(cols), work.halo[1])
    halo_cols = next_power_of_two(halo_cols)  # so that a pixel's row and column cost the kernels nothing
    halo = halo_rows * halo_cols
    step = steps.of(halo)
    return Tile(step, rows, cols, halo, halo_cols, max(LEAST_PIXELS, min(step.pixels, next_power_of_two(halo))))


@lru_cache(maxsize=512)
def choose_tile(work: Work) -> Tile:
    """The tile that wastes fewest logits, with as many heads, which share the counts, as still fill a GPU."""
    steps = (FLOAT_STEPS if work.dtype == torch.float32 else HALF_STEPS)[work.kind][work.padded_dim]

    def tiles(tile: Tile) -> int:
        down, across = tile.programs(work.own)
        return down * across

    best = min((_tile(work, rows, steps) for rows in (1, 2, 4, 8)), key=lambda tile: tile.logits * tiles(tile))
    programs = work.images * work.heads * tiles(best)
    fitting = (n for n in (4, 2, 1) if work.heads % n == 0 and (n == 1 or programs // n >= PROGRAMS_TO_FILL))
    return replace(best, heads=next(fitting))
