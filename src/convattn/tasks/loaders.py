"""Data loaders of every task: samples become tensors, each with randomness of its own; bad files are passed over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convattn.data.images import ImageError
from convattn.data.problems import BadData
from convattn.data.sampler import GlobalBatchSampler, ShardSampler
from convattn.data.types import FetchedImages, SkippedFile
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.interrupt import held_signals, obey_parent_alone
from convattn.tasks.processes import Shard
from convattn.tasks.randomness import Stream, seed_cpu
from convattn.tasks.run_folder import append_rows

MAX_WORKERS = 8

Collate = Callable[[Sequence[Any]], Any]


class NamedImages(Protocol):
    """Images that a person knows by name."""

    def __len__(self) -> int:
        """Return how many there are."""

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB."""

    def name(self, index: int) -> str:
        """Return its name."""


def fetch(images: NamedImages, indices: Sequence[int]) -> None:
    """Have images at hand that are read next, where the data set can read several at once."""
    if isinstance(images, FetchedImages):
        images.fetch(indices)


class SkipLog:
    """Notes the images that turned out unreadable while training, from whichever process met them."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def add(self, name: str, reason: str) -> None:
        """Add a row to the run's table of skipped files; the row of a file may come again."""
        if self.path is not None:
            append_rows(self.path, [[name, reason]])


@dataclass(frozen=True)
class Sample:
    """What is known of an image and how it becomes tensors: ``truth(index)`` and ``transform(image, truth)``."""

    truth: Callable[[int], Any]
    transform: Callable[[Image.Image, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class TrainingSamples(Dataset[tuple[Tensor, Any]]):
    """Training samples by (view, index); what is random is a function of (seed, view, index) alone.

    One that cannot be read is noted, and the next one takes its place.
    """

    images: NamedImages
    sample: Sample
    seed: int
    skip_log: SkipLog

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Any]]:
        """Return the samples of a batch, whose files may be read together."""
        fetch(self.images, [index for _, index in keys])
        return [self[key] for key in keys]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return the augmented image and its target."""
        view, index = key
        seed_cpu(self.seed, Stream.SAMPLE, view, index)
        for other in range(len(self.images)):
            place = (index + other) % len(self.images)
            try:
                return self.sample.transform(self.images.image(place), self.sample.truth(place))
            except (ImageError, BadData) as error:
                self.skip_log.add(self.images.name(place), _reason(error))
        raise UserError("none of the training images can be read any more: see skipped.csv in the run folder")


@dataclass(frozen=True)
class EvaluationSample:
    """An image to evaluate on: its place in the data set and its target, or why it cannot be read."""

    index: int
    image: Tensor | None
    target: Any = None
    skipped: SkippedFile | None = None


@dataclass(frozen=True)
class EvaluationSamples(Dataset[EvaluationSample]):
    """Evaluation samples by index; one that cannot be read is noted and counts nowhere."""

    images: NamedImages
    sample: Sample
    skip_log: SkipLog

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> list[EvaluationSample]:
        """Return the samples of a batch, whose files may be read together."""
        fetch(self.images, indices)
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> EvaluationSample:
        """Return the sample."""
        try:
            return EvaluationSample(index, *self.sample.transform(self.images.image(index), self.sample.truth(index)))
        except (ImageError, BadData) as error:
            skipped = SkippedFile(self.images.name(index), _reason(error))
            self.skip_log.add(skipped.path, skipped.reason)
            return EvaluationSample(index, None, skipped=skipped)


class Loader(DataLoader[Any]):
    """A ``DataLoader`` whose workers leave Ctrl-C and SIGTERM to the main process from their first moment on."""

    def __iter__(self) -> Iterator[Any]:
        """Start the workers, if there are any."""
        with held_signals():
            return super().__iter__()


def training_loader(
    recipe: Recipe, samples: TrainingSamples, sampler: GlobalBatchSampler, collate: Collate | None
) -> DataLoader[Any]:
    """Return the loader of augmented training batches, in the sampler's order."""
    return Loader(samples, batch_sampler=sampler, collate_fn=collate, **workers(recipe))


def evaluation_loader(
    recipe: Recipe, samples: EvaluationSamples, shard: Shard | None, collate: Collate
) -> DataLoader[Any]:
    """Return the loader of evaluation batches, or of one process's share of them."""
    shard = shard or Shard()
    return Loader(
        samples,
        batch_size=max(1, recipe.batch_size // shard.world),
        sampler=ShardSampler(len(samples), rank=shard.rank, world=shard.world),
        collate_fn=collate,
        **workers(recipe),
    )


def input_settings(recipe: Recipe) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...], str]:
    """Return the arguments of :func:`~convattn.data.transforms.eval_transform` that a resolved recipe stands for."""
    data = recipe.data
    if data.mean is None or data.std is None:
        raise ValueError("the recipe's data.mean and data.std are not resolved yet")
    return (3, *data.height_and_width), data.mean, data.std, data.interpolation


def workers(recipe: Recipe) -> dict[str, Any]:
    """Return how the images are loaded beside the training, as arguments of a :class:`Loader`."""
    count = recipe.data.workers
    if count is None:
        is_small = recipe.data.folder is None and recipe.data.embedded is not None
        count = 0 if is_small else min(MAX_WORKERS, max(1, (os.cpu_count() or 2) - 1))
    return {
        "num_workers": count,
        "persistent_workers": count > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _quiet_worker if count else None,
    }


def _quiet_worker(_: int) -> None:
    obey_parent_alone()
    torch.set_num_threads(1)


def _reason(error: ImageError | BadData) -> str:
    return error.reason if isinstance(error, ImageError) else str(error.problems[0])
