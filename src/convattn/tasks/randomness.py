"""Random numbers as a function of where the run stands, so that neither a resume nor a rank changes them."""

import random
from enum import IntEnum

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn


class Stream(IntEnum):
    """What random numbers are for; each purpose has a sequence of its own."""

    SAMPLE = 1
    STEP = 2


def seed_all(seed: int, stream: Stream, *position: int) -> None:
    """Seed the global generators of ``random``, numpy and torch from the run's seed and a position in it.

    Example:
        >>> seed_all(0, Stream.STEP, 7); first = torch.rand(1)
        >>> seed_all(0, Stream.STEP, 7); bool(torch.rand(1) == first)
        True
    """
    words = np.random.SeedSequence([seed, stream, *position]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  timm draws from numpy's global generator
    torch.manual_seed(int(words[2]))


class GlobalDropPath(nn.Module):
    """Stochastic depth whose draws are made for the global batch, each rank keeping its own images' share.

    Args:
        drop_prob: The probability of dropping a path.
        scale_by_keep: Whether the kept paths are scaled by 1 / (1 - ``drop_prob``).
        rank: This process.
        world: The number of processes.
    """

    def __init__(self, drop_prob: float, scale_by_keep: bool, *, rank: int, world: int) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep, self.rank, self.world = drop_prob, scale_by_keep, rank, world

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole images of ``x`` [B, ...] while training."""
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(len(x) * self.world).bernoulli_(keep)[self.rank :: self.world]
        if keep > 0 and self.scale_by_keep:
            mask = mask / keep
        return x * mask.view(-1, *(1,) * (x.ndim - 1))


def share_drop_path(model: nn.Module, *, rank: int, world: int) -> None:
    """Replace timm's ``DropPath`` throughout a model by :class:`GlobalDropPath`; for one process nothing changes.

    Element-wise dropout keeps its own draws on each rank.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                shared = GlobalDropPath(child.drop_prob or 0.0, child.scale_by_keep, rank=rank, world=world)
                module.add_module(name, shared.train(child.training))
