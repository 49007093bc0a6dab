"""The order in which training sees the images: a pure function of (seed, epoch, offset), whatever the processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from convattn.errors import UserError


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (view, index) pairs, of which rank r of ``world`` takes every ``world``-th, starting at r.

    The view numbers the augmentations of an image over the run; it is the epoch, unless an epoch ``repeats`` images.

    Each epoch is one permutation of the images, drawn from (seed, epoch) and cut into global batches; the images that
    do not fill a batch are left to other epochs. So two processes together see exactly the batches that one would see,
    and a run resumes inside an epoch by naming the number of batches already done.

    It has no length on purpose: the first epoch after a resume is shorter than the others.

    Args:
        size: The number of images.
        batch_size: The global batch; a data set smaller than it makes one batch of as many images as ``world`` divides.
        seed: The run's seed.
        rank: This process.
        world: The number of processes.
        repeats: Repeated augmentation: each image of an epoch comes this many times side by side, each time as another
            view, and the epoch keeps its number of batches, so it holds that many times fewer images.
        weights: How often each image is drawn beside the others; an epoch then draws with replacement. None takes
            each image once.

    Example:
        >>> sampler = GlobalBatchSampler(10, 4, seed=0)
        >>> [[index for _, index in batch] for batch in sampler]
        [[4, 6, 2, 7], [3, 5, 9, 0]]
        >>> sampler.start(epoch=0, batch=1)
        >>> [[index for _, index in batch] for batch in sampler]
        [[3, 5, 9, 0]]
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if batch_size % world:
            raise UserError(
                f"batch_size {batch_size} is the global batch and must be divisible by the {world} processes:"
                f" take {max(world, batch_size - batch_size % world)}"
            )
        self.size, self.seed, self.rank, self.world, self.repeats = size, seed, rank, world, repeats
        self.parts = None if weights is None else weights / weights.sum()
        self.batch_size = batch_size if size >= batch_size else _even_part(size, world)
        if self.batch_size == 0:
            raise UserError(f"{size} training images are too few for {world} processes")
        self.epoch, self.first_batch = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Return how many global batches an epoch has."""
        return self.size // self.batch_size

    def start(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at that batch of that epoch."""
        self.epoch, self.first_batch = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; one that a resume has already begun keeps its place."""
        if epoch != self.epoch:
            self.start(epoch, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's share of each batch."""
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(self.size) if self.parts is None else draw.choice(self.size, self.size, p=self.parts)
        for batch in range(self.first_batch, self.batches_per_epoch):
            places = range(batch * self.batch_size, (batch + 1) * self.batch_size)[self.rank :: self.world]
            yield [
                (self.epoch * self.repeats + place % self.repeats, int(order[place // self.repeats]))
                for place in places
            ]


class ShardSampler(Sampler[int]):
    """Every ``world``-th image from ``rank`` on, in order and none twice: for evaluation.

    Example:
        >>> list(ShardSampler(5, rank=1, world=2))
        [1, 3]
    """

    def __init__(self, size: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, size, world)

    def __len__(self) -> int:
        """Return this rank's number of images."""
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's images."""
        return iter(self.indices)


def _even_part(size: int, world: int) -> int:
    step = world if world % 2 == 0 else 2 * world
    return size - size % step if size >= step else size - size % world
