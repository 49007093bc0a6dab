"""What a task is: its data, network, loss, evaluation and pictures, which the training loop and the commands ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from convattn.data.folder import Progress
from convattn.data.sampler import GlobalBatchSampler
from convattn.data.types import SkippedFile, Split
from convattn.errors import UserError
from convattn.tasks.answers import Answer, AnswerOptions, Pictures, Scores, with_reasons
from convattn.tasks.building import check_image, converted, with_statistics
from convattn.tasks.config import HeadName, Recipe, TaskName
from convattn.tasks.loaders import (
    EvaluationSample,
    EvaluationSamples,
    NamedImages,
    Sample,
    SkipLog,
    TrainingSamples,
    evaluation_loader,
    training_loader,
)
from convattn.tasks.names import TASKS
from convattn.tasks.processes import Shard
from convattn.tasks.run_folder import RunFolder

if TYPE_CHECKING:
    from torchmetrics import MeanMetric

    from convattn.tasks.inference import LoadedModel
    from convattn.tasks.module import TrainingModule  # imports Lightning, which inference does without
    from convattn.tasks.records import Records

InputSize: TypeAlias = tuple[int, int, int]
"""Channels, height and width."""

Data: TypeAlias = Any
"""A data set with ``classes``, ``train``, ``val`` and ``skipped``; of which kind is for its task to know."""


class Objective(nn.Module, ABC):
    """What training minimises and what is measured after every epoch.

    ``losses`` counts the validation losses that were finite, and those that were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses = torch.zeros(2)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return what is to be minimised of a training batch, or of this process's share of one."""

    @abstractmethod
    def update(self, model: nn.Module, batch: Any) -> None:
        """Measure the model on an evaluation batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the task's figures by name, over all processes, and start anew."""

    def write(self, run: RunFolder) -> None:
        """Write what was computed last beside its figures, for the page of a run that is stopped."""

    def measure(self, mean: MeanMetric, losses: Tensor, weight: int = 1) -> None:
        """Take validation losses into a mean, which passes over those that are not finite."""
        finite = losses.isfinite()
        self.losses = self.losses.to(losses.device) + torch.stack([finite.sum(), (~finite).sum()])
        mean.update(losses[finite], weight=weight)


class Task(ABC):
    """What is learned: its data, its network, its training and its results.

    Attributes:
        figures: What every epoch is measured by.
        score: The one of them that chooses the best epoch.
        main: The result that says how good a run is, and its name for people.
        recipes: The recipes that are used where none is named: for the embedded images, and for a folder.
        heads: The networks on the backbone, the default first; empty where the backbone is the whole network.
        also_heads: Further networks that the task accepts.
        batch: Images at a time outside of training.
        image_sizes: Whether all images are brought to one size before the network sees them.
        normalises: Whether the transforms subtract the mean; detectors do that themselves.
        files: What ``convattn predict`` writes beside pictures; empty where it prints its answers.
    """

    name: ClassVar[TaskName]
    figures: ClassVar[tuple[str, ...]]
    score: ClassVar[str]
    main: ClassVar[tuple[str, str]]
    recipes: ClassVar[tuple[str, str]]
    heads: ClassVar[tuple[HeadName, ...]] = ()
    also_heads: ClassVar[tuple[HeadName, ...]] = ()
    batch: ClassVar[int] = 1
    image_sizes: ClassVar[Literal["one", "any"]] = "any"
    normalises: ClassVar[bool] = True
    files: ClassVar[str] = ""

    @abstractmethod
    def open_data(self, recipe: Recipe, progress: Progress | None = None) -> Data:
        """Return the recipe's data set, checked for what training needs; ``progress`` hears of the images looked at."""

    @abstractmethod
    def open_other(
        self, root: Path, classes: list[str], recipe: Recipe, progress: Progress | None = None, split: Split = "val"
    ) -> tuple[list[str], Any, list[SkippedFile]]:
        """Return the classes and the annotated images of a split to measure on, and what was left out.

        ``classes`` are the network's; ``recipe`` says how the images are to be read. Of data without a split "val" all
        images are taken for it.
        """

    @abstractmethod
    def network(self, recipe: Recipe, classes: int) -> nn.Module:
        """Return the recipe's network for that many classes, freshly made and not converted.

        Raises:
            UserError: for what does not fit together in it.
        """

    def with_backbone(self, model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Return the network with what ``change`` makes of the recipe's ``model`` in its place."""
        return change(model)

    @abstractmethod
    def statistics(self, recipe: Recipe, model: nn.Module) -> Mapping[str, Any]:
        """Return the ``mean`` and ``std`` that the network expects of its inputs, and a classifier's ``crop_pct``."""

    @abstractmethod
    def objective(self, recipe: Recipe, data: Data) -> Objective:
        """Return what is minimised and measured."""

    @abstractmethod
    def training_sample(self, recipe: Recipe, images: Any) -> Sample:
        """Return how training images become tensors."""

    @abstractmethod
    def evaluation_sample(self, recipe: Recipe, images: Any, size: InputSize | None = None) -> Sample:
        """Return how annotated images become tensors, of the recipe's size or of another one, where they have one."""

    @abstractmethod
    def transform(self, recipe: Recipe, size: InputSize | None = None) -> Callable[[Image.Image], Tensor]:
        """Return what makes a tensor of an image without annotations."""

    @abstractmethod
    def answer(self, model: nn.Module, recipe: Recipe, batch: Any) -> list[Answer]:
        """Return the network's answers on an evaluation batch, in any order: no value where it is not finite."""

    @abstractmethod
    def scores(self, images: Any, classes: Sequence[str], answers: Iterable[Answer]) -> Scores:
        """Return the figures of the answers on annotated images that could be read."""

    @abstractmethod
    def write_results(self, run: RunFolder, data: Data, answers: Iterable[Answer]) -> dict[str, float]:
        """Write the answers on the validation images that could be read, and return their figures."""

    @abstractmethod
    def image_size(self, recipe: Recipe, model: nn.Module) -> str:
        """Return the size of the images as the network sees them in training, for people."""

    @abstractmethod
    def smaller(self, recipe: Recipe) -> str:
        """Return the setting that makes the images smaller, as a person types it."""

    def as_seen(self, model: nn.Module, recipe: Recipe, image: Tensor) -> Tensor:
        """Return an image ``[1, 3, H, W]`` as the network's own scaling makes it."""
        return image

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the part of a network that ``compile`` of a recipe compiles."""
        return model

    def takes_any_size(self, recipe: Recipe) -> bool:
        """Return whether the network sees each image at the size that it has."""
        return False

    def recognises(self, root: Path) -> str:
        """Return what annotations of this task a folder or file holds, for people; an empty text where it has none."""
        return ""

    def remark(self, data: Data) -> str:
        """Return what a person should know of the data before training."""
        return ""

    def pictures(self, loaded: LoadedModel, files: list[Path], out: Path, options: AnswerOptions) -> Pictures:
        """Return what writes the answers on image files into a folder; only where ``files`` is not empty."""
        raise NotImplementedError(f"{self.name} writes no pictures")

    @abstractmethod
    def records(self, loaded: LoadedModel, files: Sequence[Path], options: AnswerOptions) -> Records:
        """Return what makes data of the answers on image files."""

    def head(self, recipe: Recipe) -> HeadName:
        """Return the network on the recipe's backbone, the default where it names none."""
        head = recipe.network.head or self.heads[0]
        if head not in self.heads + self.also_heads:
            raise UserError(f"network.head {head} does not do {self.name}: take one of {', '.join(self.heads)}")
        return head

    def collate(self, batch: Sequence[Any]) -> Any:
        """Return a training batch."""
        return default_collate(list(batch))

    def collate_evaluation(self, batch: Sequence[EvaluationSample]) -> Any:
        """Return an evaluation batch: a list, since images differ in size."""
        return list(batch)

    def example(self, recipe: Recipe) -> Any:
        """Return an input of the network."""
        return torch.zeros(1, 3, *recipe.data.height_and_width)

    def output_fault(self, output: Any, classes: int) -> str:
        """Return what is wrong with the form of the network's output on :meth:`example`."""
        return ""

    def build(self, recipe: Recipe, data: Data, model: nn.Module | None = None) -> tuple[nn.Module, Recipe]:
        """Return the network, tried on an image, and the recipe with what it left to the network filled in.

        A ``model`` that is given takes the place of the recipe's.
        """
        if model is None:
            from convattn.tasks.starting import start  # which reads weights, and builds the networks that they are of

            model = start(recipe, len(data.classes))
        elif recipe.convert.to is not None or any((recipe.weights, recipe.backbone_weights, recipe.freeze is not None)):
            raise UserError(
                "convert, weights, backbone_weights and freeze are for a network by name: change one of your own before"
            )
        if recipe.freeze is not None:
            from convattn.tasks.finetuning import freeze  # which imports Lightning

            freeze(self, model, recipe.freeze)
        output = check_image(recipe, model, self.example(recipe))
        if fault := self.output_fault(output, len(data.classes)):
            raise UserError(f"model {recipe.model} with model_args {recipe.model_args} {fault}")
        return model, with_statistics(recipe, self.statistics(recipe, model))

    def module(self, model: nn.Module, recipe: Recipe, data: Data, batches_per_epoch: int) -> TrainingModule:
        """Return what trains the network."""
        from convattn.tasks.module import TrainingModule

        return TrainingModule(model, recipe, self.objective(recipe, data), batches_per_epoch=batches_per_epoch)

    def sampler(self, recipe: Recipe, data: Data, shard: Shard | None = None) -> GlobalBatchSampler:
        """Return the order of the training images, or one process's share of it."""
        shard = shard or Shard()
        return GlobalBatchSampler(
            len(data.train),
            recipe.batch_size,
            seed=recipe.seed,
            rank=shard.rank,
            world=shard.world,
            repeats=recipe.data.repeats,
            weights=self.sampling_weights(recipe, data),
        )

    def training_loader(
        self, recipe: Recipe, data: Data, sampler: GlobalBatchSampler, skip_log: SkipLog
    ) -> DataLoader[Any]:
        """Return the training batches, in the sampler's order."""
        samples = TrainingSamples(data.train, self.training_sample(recipe, data.train), recipe.seed, skip_log)
        return training_loader(recipe, samples, sampler, self.collate)

    def sampling_weights(self, recipe: Recipe, data: Data) -> np.ndarray | None:
        """Return how often each training image is drawn beside the others, None where an epoch has each once."""
        return None

    def evaluation_loader(
        self, recipe: Recipe, data: Data, skip_log: SkipLog, shard: Shard | None = None
    ) -> DataLoader[Any]:
        """Return the validation images, or one process's share of them."""
        samples = EvaluationSamples(data.val, self.evaluation_sample(recipe, data.val), skip_log)
        return evaluation_loader(recipe, samples, shard, self.collate_evaluation)

    def answers(
        self, model: nn.Module, recipe: Recipe, images: NamedImages, sample: Sample, skip_log: SkipLog
    ) -> Iterator[Answer]:
        """Yield the network's answers on images, in order.

        Raises:
            FloatingPointError: None of them is finite.
        """
        model.eval()
        samples = EvaluationSamples(images, sample, skip_log)

        def found() -> Iterator[Answer]:
            for batch in evaluation_loader(recipe, samples, None, self.collate_evaluation):
                with torch.inference_mode():
                    answers = self.answer(model, recipe, batch)
                yield from sorted(answers, key=lambda one: one.index)

        yield from with_reasons(found(), images)

    def mirrored(self, model: nn.Module) -> nn.Module:
        """Return a network that answers with an image and its mirror image, see :mod:`convattn.tasks.tta`."""
        from convattn.tasks.tta import MirroredLogits

        return MirroredLogits(model)

    def describe(self, data: Data) -> dict[str, Any]:
        """Return what weights say of the data beside its classes, see :meth:`Description.parse`."""
        return {}

    def describe_results(self, run: RunFolder, data: Data) -> dict[str, Any]:
        """Return what weights say of the results that :meth:`write_results` has written."""
        return {}

    def main_figure(self, figures: Mapping[str, float]) -> tuple[str, float]:
        """Return the figure that says how good a run is, with its name for people."""
        figure, name = self.main
        return name, figures[figure]

    def main_score(self, scores: Scores) -> tuple[str, float]:
        """Return the score that says how good a model is, with its name for people."""
        return self.main_figure(scores.figures)

    def write_report(self, run: RunFolder, recipe: Recipe, data: Data, loaded: LoadedModel | None = None) -> str:
        """Write the run's page and return its name; with its model the page shows what that looks at."""
        from convattn.report import write_report
        from convattn.tasks.seeing import first_batch, looks

        found = None if loaded is None else looks(loaded, data.val, run.path)
        return write_report(run.path, data.val, seen=first_batch(recipe, data), looks=found).name

    def interval(self, scores: Scores) -> tuple[float, float] | None:
        """Return the 95 % interval of the main score; None where it is no part of the images."""
        return None

    def lines(self, scores: Scores) -> list[str]:
        """Return what a person is told of scores before the table of classes."""
        return ["  ".join(f"{name.replace('_', ' ')} {percent(value)}" for name, value in scores.figures.items())]

    def record(self, scores: Scores) -> dict[str, Any]:
        """Return scores for programs."""
        return {"images": scores.images, "figures": scores.figures, "per_class": scores.per_class}


def percent(value: float) -> str:
    """Return a part of one in per cent, a dash where there is nothing to measure."""
    return "–" if value != value else f"{value:.1%}"


_PLACES: dict[TaskName, tuple[str, str]] = {
    "classification": ("classification", "ClassificationTask"),
    "detection": ("detection", "DetectionTask"),
    "instances": ("detection", "InstancesTask"),
    "segmentation": ("segmentation", "SegmentationTask"),
}


@cache
def task_named(name: TaskName) -> Task:
    """Return a task; only then the packages that it needs are imported."""
    file, kind = _PLACES[name]
    found: Task = getattr(import_module(f"convattn.tasks.{file}"), kind)()
    return found


def every_task() -> list[Task]:
    """Return all tasks."""
    return [task_named(name) for name in TASKS]


def task_of(recipe: Recipe) -> Task:
    """Return the task that a recipe is for.

    Example:
        >>> task_of(Recipe(model="resnet10t")).score
        'val_accuracy'
    """
    return task_named(recipe.task)


def build_network(recipe: Recipe, classes: int) -> nn.Module:
    """Return the network that a recipe describes, freshly made and converted.

    Raises:
        UserError: for what does not fit together in it.
    """
    task = task_of(recipe)
    return task.with_backbone(task.network(recipe, classes), lambda backbone: converted(backbone, recipe))
