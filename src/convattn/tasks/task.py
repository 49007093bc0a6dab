"""The tasks that a recipe can name, each a set of parts that the one training loop is run with."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import nn
from torch.utils.data import DataLoader

from convattn.data.folder import Progress
from convattn.data.sampler import GlobalBatchSampler
from convattn.tasks.config import Recipe, TaskName
from convattn.tasks.loaders import Shard, SkipLog
from convattn.tasks.run_folder import RunFolder

if TYPE_CHECKING:
    from convattn.tasks.module import TrainingModule  # imports Lightning, which inference does without

Data: TypeAlias = Any
"""A data set with ``classes``, ``train``, ``val`` and ``skipped``; of which kind is for its task to know."""


class Task(Protocol):
    """What is learned: its data, its network, its training and its results.

    ``figures`` are what every epoch is measured by, ``score`` the one of them that chooses the best epoch.
    """

    figures: tuple[str, ...]
    score: str

    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> Data:
        """Return the recipe's data set, checked for what training needs; ``progress`` hears of the images looked at."""

    def build(self, recipe: Recipe, data: Data) -> tuple[nn.Module, Recipe]:
        """Return the network, tried on an image, and the recipe with what it left to the network filled in."""

    def module(self, model: nn.Module, recipe: Recipe, data: Data, batches_per_epoch: int) -> TrainingModule:
        """Return what trains the network."""

    def training_loader(
        self, recipe: Recipe, data: Data, sampler: GlobalBatchSampler, skip_log: SkipLog
    ) -> DataLoader[Any]:
        """Return the training batches, in the sampler's order."""

    def evaluation_loader(
        self, recipe: Recipe, data: Data, skip_log: SkipLog, shard: Shard | None = None
    ) -> DataLoader[Any]:
        """Return the validation images, or one process's share of them."""

    def write_results(
        self, run: RunFolder, recipe: Recipe, data: Data, model: nn.Module, skip_log: SkipLog
    ) -> dict[str, float]:
        """Write the network's results on the validation images and return their figures."""

    def describe(self, data: Data) -> dict[str, Any]:
        """Return what weights say of the data beside its classes, see :meth:`Description.parse`."""

    def describe_results(self, run: RunFolder, data: Data) -> dict[str, Any]:
        """Return what weights say of the results that :meth:`write_results` has written."""

    def main_figure(self, figures: dict[str, float]) -> tuple[str, float]:
        """Return the figure that says how good the run is, with its name for people."""

    def write_report(self, run: RunFolder, data: Data) -> str:
        """Write the run's page and return its name."""


_PLACES: dict[TaskName, tuple[str, str]] = {
    "classification": ("classification", "ClassificationTask"),
    "detection": ("detection", "DetectionTask"),
    "instances": ("detection", "InstancesTask"),
    "segmentation": ("segmentation", "SegmentationTask"),
}


def task_of(recipe: Recipe) -> Task:
    """Return the parts that a recipe's task is run with.

    Example:
        >>> task_of(Recipe(model="resnet10t")).score
        'val_accuracy'
    """
    file, name = _PLACES[recipe.task]
    # Only when asked for: a classifier needs none of what detectors are built with.
    found: Task = getattr(import_module(f"convattn.tasks.{file}"), name)()
    return found


def build_network(recipe: Recipe, classes: int) -> nn.Module:
    """Return the detector or segmenter that a recipe describes, freshly made.

    Raises:
        UserError: for what does not fit together in it.
    """
    if recipe.task == "segmentation":
        from convattn.tasks.segmentation import build_segmenter

        return build_segmenter(recipe, classes)
    from convattn.tasks.detection import build_detector

    return build_detector(recipe, classes)
