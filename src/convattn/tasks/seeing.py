"""What a run's page shows of what its network saw: its first batch, and what it looks at in validation images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from convattn.errors import UserError
from convattn.report.looks import look_gallery
from convattn.report.seen import SeenImage, seen_gallery
from convattn.report.task import Gallery
from convattn.tasks.answers import AnswerOptions
from convattn.tasks.config import Recipe
from convattn.tasks.explaining import Explained, Photo
from convattn.tasks.loaders import NamedImages, SkipLog, TrainingSamples
from convattn.tasks.randomness import Stream, seed_all
from convattn.tasks.task import Data, task_of

if TYPE_CHECKING:
    from convattn.tasks.inference import LoadedModel

SEEN = 12
LOOKS = 4


def looks(loaded: LoadedModel, images: NamedImages, run: Path) -> Gallery | None:
    """Return what a model looks at in a few images, spread over the data set, or why it cannot take one."""
    found = []
    for index in np.linspace(0, len(images) - 1, min(LOOKS, len(images))).round().astype(int).tolist():
        try:
            photo = Photo.of(images.image(index), images.name(index))
        except (UserError, OSError):  # it has gone since
            continue
        try:
            found.append(Explained(loaded, photo, AnswerOptions(run)).look())
        except UserError as error:
            return Gallery(str(error), [], [], 0)
    return look_gallery(found)


def first_batch(recipe: Recipe, data: Data) -> Gallery | None:
    """Return the first images of a run's first batch, augmented as they were; None where none can be read.

    Mixed images (mixup, CutMix) are mixed among those that are shown.
    """
    try:
        images = list(_augmented(recipe, data))
    except UserError:
        return None
    intro = f"The first {len(images)} images of the first batch, augmented as the network saw them."
    if recipe.mix.on and len(images) > 1:
        images = _mixed(recipe, data, images[: len(images) // 2 * 2])
        intro += " They are mixed among themselves as a batch is (mixup, CutMix)."
    return seen_gallery([_undone(recipe, *one) for one in images], data.classes, intro)


def _augmented(recipe: Recipe, data: Data) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield name, tensor and target of the first images."""
    task = task_of(recipe)
    samples = TrainingSamples(data.train, task.training_sample(recipe, data.train), recipe.seed, SkipLog())
    for view, index in islice(next(iter(task.sampler(recipe, data))), SEEN):
        yield data.train.name(index), *samples[view, index]


def _mixed(recipe: Recipe, data: Data, images: list[tuple[str, Tensor, Any]]) -> list[tuple[str, Tensor, Any]]:
    from convattn.tasks.classification import ClassificationObjective

    seed_all(recipe.seed, Stream.STEP, 0)
    names, tensors, labels = zip(*images, strict=True)
    objective = ClassificationObjective(recipe, len(data.classes))
    mixed, targets = objective.mixed_here(torch.stack(tensors), torch.tensor(labels))
    return list(zip(names, mixed, targets, strict=True))


def _undone(recipe: Recipe, name: str, tensor: Tensor, target: Any) -> SeenImage:
    """Undo the normalisation; detectors normalise themselves."""
    return SeenImage(name, _image(recipe, tensor), target)


def _image(recipe: Recipe, tensor: Tensor) -> Image.Image:
    mean, std = recipe.data.mean, recipe.data.std
    if task_of(recipe).normalises and mean is not None and std is not None:
        tensor = tensor * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return to_pil_image(tensor.clamp(0, 1))
