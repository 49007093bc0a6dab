"""Data loaders: images become tensors, each with randomness of its own."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convattn.data.digits import open_digits
from convattn.data.folder import Progress, open_folder
from convattn.data.images import ImageError
from convattn.data.sampler import GlobalBatchSampler, ShardSampler
from convattn.data.transforms import Transform, eval_transform, train_transform
from convattn.data.types import ClassificationData, LabelledImages
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.interrupt import held_signals, obey_parent_alone
from convattn.tasks.randomness import Stream, seed_all
from convattn.tasks.run_folder import append_rows

MAX_WORKERS = 8

UNREADABLE = -1
"""The label of a validation image that could not be read; it counts nowhere."""


@dataclass(frozen=True)
class Shard:
    """Which of ``world`` processes this is."""

    rank: int = 0
    world: int = 1


class SkipLog:
    """Notes the images that turned out unreadable while training, from whichever process met them."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def add(self, name: str, reason: str) -> None:
        """Add a row to the run's table of skipped files; the row of a file may come again."""
        if self.path is not None:
            append_rows(self.path, [[name, reason]])


@dataclass(frozen=True)
class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Training images by (view, index); the augmentation is a function of (seed, view, index) alone.

    An image that cannot be read is noted, and the next one takes its place.
    """

    images: LabelledImages
    transform: Transform
    seed: int
    skip_log: SkipLog

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """Return the augmented image and its label."""
        view, index = key
        seed_all(self.seed, Stream.SAMPLE, view, index)
        for other in range(len(self.images)):
            place = (index + other) % len(self.images)
            try:
                return self.transform(self.images.image(place)), self.images.label(place)
            except ImageError as error:
                self.skip_log.add(self.images.name(place), error.reason)
        raise UserError("none of the training images can be read any more: see skipped.csv in the run folder")


@dataclass(frozen=True)
class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """Validation images by index; one that cannot be read is noted and gets the label ``UNREADABLE``."""

    images: LabelledImages
    transform: Transform
    skip_log: SkipLog

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image and its label."""
        try:
            return self.transform(self.images.image(index)), self.images.label(index)
        except ImageError as error:
            self.skip_log.add(self.images.name(index), error.reason)
            return self.transform(Image.new("RGB", (1, 1))), UNREADABLE


def open_data(recipe: Recipe, progress: Progress | None = None) -> ClassificationData:
    """Return the recipe's data set, checked for what training needs.

    Raises:
        UserError: for a missing folder, a split without images, fewer than two classes or a label out of range.
    """
    if recipe.data.folder is not None:
        where = recipe.data.folder
        data = open_folder(where, val_fraction=recipe.data.val_fraction, progress=progress)
    elif recipe.data.embedded == "digits":
        where = "the digits"
        data = open_digits(recipe.data.image_size)
    else:
        raise UserError("this recipe brings no images of classes: give a folder of them with --data")
    check_data(data, where)
    wanted = recipe.model_args.get("num_classes", len(data.classes))
    if wanted != len(data.classes):
        raise UserError(
            f"model_args.num_classes is {wanted}, but {where} has {len(data.classes)} classes: leave the setting out"
        )
    return data


def check_data(data: ClassificationData, where: str) -> None:
    """Raise unless there are two classes, images in both splits and every label names a class."""
    if len(data.classes) < 2:
        raise UserError(
            f"{where} has one class only ({', '.join(data.classes) or 'none'}): a classifier needs two or more,"
            " one folder of images for each"
        )
    for split, images in (("training", data.train), ("validation", data.val)):
        if len(images) == 0:
            raise UserError(f"{where} has no {split} images: add some, or change data.val_fraction")
        for index in range(len(images)):
            label = images.label(index)
            if not 0 <= label < len(data.classes):
                raise UserError(
                    f"{where}: {images.name(index)} has label {label}, but the {len(data.classes)} classes"
                    f" are numbered 0 to {len(data.classes) - 1}"
                )


def input_settings(recipe: Recipe) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...], str]:
    """Return the arguments of :func:`~convattn.data.transforms.eval_transform` that a resolved recipe stands for."""
    data = recipe.data
    if data.mean is None or data.std is None:
        raise ValueError("the recipe's data.mean and data.std are not resolved yet")
    return (3, data.image_size, data.image_size), data.mean, data.std, data.interpolation


class Loader(DataLoader[Any]):
    """A ``DataLoader`` whose workers leave Ctrl-C and SIGTERM to the main process from their first moment on."""

    def __iter__(self) -> Iterator[Any]:
        """Start the workers, if there are any."""
        with held_signals():
            return super().__iter__()


def training_loader(
    recipe: Recipe, images: LabelledImages, sampler: GlobalBatchSampler, skip_log: SkipLog
) -> DataLoader:
    """Return the loader of augmented training batches, in the sampler's order."""
    transform = train_transform(*input_settings(recipe), recipe.augment)
    return Loader(TrainingImages(images, transform, recipe.seed, skip_log), batch_sampler=sampler, **workers(recipe))


def evaluation_loader(
    recipe: Recipe, images: LabelledImages, skip_log: SkipLog, shard: Shard | None = None
) -> DataLoader:
    """Return the loader of the validation images, or of one process's share of them."""
    shard = shard or Shard()
    dataset = EvaluationImages(images, eval_transform(*input_settings(recipe)), skip_log)
    sampler = ShardSampler(len(images), rank=shard.rank, world=shard.world)
    return Loader(dataset, batch_size=max(1, recipe.batch_size // shard.world), sampler=sampler, **workers(recipe))


def workers(recipe: Recipe) -> dict[str, Any]:
    """Return how the images are loaded beside the training, as arguments of a :class:`Loader`."""
    count = recipe.data.workers
    if count is None:
        small = recipe.data.folder is None
        count = 0 if small else min(MAX_WORKERS, max(1, (os.cpu_count() or 2) - 1))
    return {
        "num_workers": count,
        "persistent_workers": count > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _quiet_worker if count else None,
    }


def _quiet_worker(_: int) -> None:
    obey_parent_alone()
    torch.set_num_threads(1)
