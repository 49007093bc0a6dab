"""Loaders of images with boxes, masks or label maps: randomness of their own, bad files noted and passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convattn.data.images import ImageError
from convattn.data.problems import BadData
from convattn.data.sampler import GlobalBatchSampler, ShardSampler
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import Loader, Shard, SkipLog, workers
from convattn.tasks.module import TrainingModule
from convattn.tasks.randomness import Stream, seed_all


class AnnotatedImages(Protocol):
    """Images that a person knows by name."""

    def __len__(self) -> int:
        """Return how many there are."""

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB."""

    def name(self, index: int) -> str:
        """Return its name."""


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

    images: AnnotatedImages
    sample: Sample
    seed: int
    skip_log: SkipLog

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return the augmented image and its target."""
        view, index = key
        seed_all(self.seed, Stream.SAMPLE, view, index)
        for other in range(len(self.images)):
            place = (index + other) % len(self.images)
            try:
                return self.sample.transform(self.images.image(place), self.sample.truth(place))
            except (ImageError, BadData) as error:
                self.skip_log.add(self.images.name(place), _reason(error))
        raise UserError("none of the training images can be read any more: see skipped.csv in the run folder")


@dataclass(frozen=True)
class EvaluationSample:
    """A validation image, its place in the data set and its target; both are None where it cannot be read."""

    index: int
    image: Tensor | None
    target: Any = field(default=None)


@dataclass(frozen=True)
class EvaluationSamples(Dataset[EvaluationSample]):
    """Validation samples by index; one that cannot be read is noted and counts nowhere."""

    images: AnnotatedImages
    sample: Sample
    skip_log: SkipLog

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> EvaluationSample:
        """Return the sample."""
        try:
            return EvaluationSample(index, *self.sample.transform(self.images.image(index), self.sample.truth(index)))
        except (ImageError, BadData) as error:
            self.skip_log.add(self.images.name(index), _reason(error))
            return EvaluationSample(index, None)


def training_samples_loader(
    recipe: Recipe, samples: TrainingSamples, sampler: GlobalBatchSampler, collate: Callable[[Sequence[Any]], Any]
) -> DataLoader[Any]:
    """Return the loader of augmented training batches, in the sampler's order."""
    return Loader(samples, batch_sampler=sampler, collate_fn=collate, **workers(recipe))


def evaluation_samples_loader(
    recipe: Recipe, samples: EvaluationSamples, shard: Shard | None = None
) -> DataLoader[list[EvaluationSample]]:
    """Return the loader of the validation samples, or of one process's share, in lists: images differ in size."""
    shard = shard or Shard()
    return Loader(
        samples,
        batch_size=max(1, recipe.batch_size // shard.world),
        sampler=ShardSampler(len(samples), rank=shard.rank, world=shard.world),
        collate_fn=list,
        **workers(recipe),
    )


class DenseModule(TrainingModule):
    """A :class:`TrainingModule` whose validation batches are lists of :class:`EvaluationSample`."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a training batch; evaluation samples, which differ in size, are moved where they are used."""
        if isinstance(batch, list) and all(isinstance(sample, EvaluationSample) for sample in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def stack_pairs(batch: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return images of one size and their label maps as two tensors."""
    return torch.stack([image for image, _ in batch]), torch.stack([target for _, target in batch])


def gather_objects(own: list[Any]) -> list[Any]:
    """Return the lists of all processes as one; with one process its own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, own)
    return [item for part in every for item in part]


def _reason(error: ImageError | BadData) -> str:
    return error.reason if isinstance(error, ImageError) else str(error.problems[0])
