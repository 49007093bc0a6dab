"""Random numbers as a function of where the run stands, so that neither a resume nor a rank changes them."""

import random
from enum import IntEnum

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class Stream(IntEnum):
    """What random numbers are for; each purpose has a sequence of its own."""

    SAMPLE = 1
    STEP = 2
    NORMS = 3


def seed_all(seed: int, stream: Stream, *position: int) -> None:
    """Seed the global generators of ``random``, numpy and torch from the run's seed and a position in it.

    Example:
        >>> seed_all(0, Stream.STEP, 7); first = torch.rand(1)
        >>> seed_all(0, Stream.STEP, 7); bool(torch.rand(1) == first)
        True
    """
    torch.manual_seed(seed_cpu(seed, stream, *position))


def seed_cpu(seed: int, stream: Stream, *position: int) -> int:
    """Do what :func:`seed_all` does for what is drawn on the CPU, and return torch's seed.

    ``torch.manual_seed`` formats a traceback at each call until CUDA is used, which takes as long as a small image.

    Example:
        >>> _ = seed_cpu(0, Stream.STEP, 7); first = torch.rand(1)
        >>> seed_all(0, Stream.STEP, 7); bool(torch.rand(1) == first)
        True
    """
    words = np.random.SeedSequence([seed, stream, *position]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  timm draws from numpy's global generator
    torch.default_generator.manual_seed(int(words[2]))
    return int(words[2])


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


class ImageSampler(BalancedPositiveNegativeSampler):
    """Torchvision's sampler of anchors and proposals whose draws for an image depend on its place in the global batch.

    Args:
        sampler: The one that it replaces.
        rank: This process.
        world: The number of processes.
    """

    def __init__(self, sampler: BalancedPositiveNegativeSampler, *, rank: int, world: int) -> None:
        super().__init__(sampler.batch_size_per_image, sampler.positive_fraction)
        self.rank, self.world = rank, world

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the masks of positives and negatives for each image."""
        seed = int(torch.randint(2**31, ()))
        after = torch.get_rng_state()
        positive: list[Tensor] = []
        negative: list[Tensor] = []
        for place, matched in enumerate(matched_idxs):
            torch.manual_seed(seed + self.rank + self.world * place)
            for masks, found in zip((positive, negative), super().__call__([matched]), strict=True):
                masks += found
        # On a GPU too the next draw follows from the run's position: this number is the same on every process.
        torch.manual_seed(seed)
        torch.set_rng_state(after)
        return positive, negative


def share_sampling(model: nn.Module, *, rank: int, world: int) -> None:
    """Have a detector's sampling of anchors and proposals not depend on the number of processes."""
    for module in model.modules():
        sampler = getattr(module, "fg_bg_sampler", None)
        if isinstance(sampler, BalancedPositiveNegativeSampler):
            module.fg_bg_sampler = ImageSampler(sampler, rank=rank, world=world)
