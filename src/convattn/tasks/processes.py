"""The processes of a distributed run: which one this is, and gathering from all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Shard:
    """Which of ``world`` processes this is."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Shard:
        """Return the place of this process among those that train."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())


def gather_objects(own: list[Any]) -> list[Any]:
    """Return the lists of all processes as one; with one process its own."""
    world = Shard.here().world
    if world == 1:
        return own
    every: list[Any] = [None] * world
    distributed.all_gather_object(every, own)
    return [item for part in every for item in part]


def gather_batch(own: Tensor) -> Tensor:
    """Return the global batch of which each process has every ``world``-th entry, from its rank on."""
    every = [torch.empty_like(own) for _ in range(Shard.here().world)]
    distributed.all_gather(every, own.contiguous())
    return torch.stack(every, 1).flatten(0, 1)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is sharded, any other one as it is."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered from all processes, which all call this; any other one as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full
