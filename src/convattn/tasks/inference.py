"""Use a trained model: load it from wherever training left it, predict on images, evaluate on labelled ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import convattn.models  # noqa: F401  registers the models with timm
from convattn.data.names import shortened
from convattn.data.types import SkippedFile
from convattn.errors import UserError, first_line
from convattn.tasks.answers import Answer, Scores, counted_wrong
from convattn.tasks.archives import weights_fault
from convattn.tasks.building import network_name, reason_of
from convattn.tasks.checkpoints import DESCRIPTION, shipped_weights
from convattn.tasks.config import Recipe
from convattn.tasks.described import Description
from convattn.tasks.devices import best_device
from convattn.tasks.inputs import Input, Inputs
from convattn.tasks.loaders import NamedImages, Sample, SkipLog
from convattn.tasks.names import TaskName
from convattn.tasks.reach import refuse_reaching
from convattn.tasks.recipes import read_recipe
from convattn.tasks.shards import read_whole
from convattn.tasks.task import task_of

FEW = 256
"""With fewer images than this no processes are started to load them."""

Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
HALVES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

EXPORTED = (".onnx", ".xml", ".pt2", ".torchscript")
"""How files of ``convattn export`` end. What opens them is imported for these alone."""


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in evaluation mode, with all that it takes to feed it and to read its answers.

    ``transform`` gives what the model takes; ``recipe`` is that of a network like this one: its task, and how it sees
    an image. For ``category_ids`` and ``min_score`` of a detector see :class:`~convattn.tasks.described.Description`,
    which is read from the weights' ``description``.
    """

    model: nn.Module
    classes: list[str]
    transform: Callable[[Image.Image], Tensor]
    input_size: tuple[int, int, int]
    name: str
    source: Path
    device: torch.device
    recipe: Recipe
    category_ids: list[int] = field(default_factory=list)
    min_score: float | None = None
    description: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        description: Mapping[str, str],
        fields: Description,
        source: Path,
        device: torch.device,
    ) -> LoadedModel:
        """Return the network with what its description, and the ``fields`` that were read from it, say."""
        return cls(
            model=model,
            classes=fields.classes,
            transform=fields.transform(),
            input_size=fields.input_size,
            name=network_name(fields.recipe),
            source=source,
            device=device,
            recipe=fields.recipe,
            category_ids=fields.category_ids,
            min_score=fields.min_score,
            description=description,
        )

    @property
    def task(self) -> TaskName:
        """What the model has learned."""
        return self.recipe.task


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first."""

    file: str
    classes: list[str]
    probabilities: list[float]


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    trust: bool = False,
    model: nn.Module | None = None,
    precision: Precision = "float32",
) -> LoadedModel:
    """Load a model from a run folder, a ``weights.safetensors``, a checkpoint or a file of ``convattn export``.

    A run folder gives its ``weights.safetensors``, or its best or last checkpoint where training has not ended.

    Args:
        path: The run folder or the file.
        device: Where the model is to run; "auto" is a GPU where there is one.
        trust: Whether the file may name a network that opens other files or the network: ``hf-hub:owner/name``.
        model: The network that the weights are for, where it was given to :func:`convattn.tasks.train` too.
        precision: "bf16" or "fp16": the network computes under ``torch.autocast``, its answers are float32.

    Raises:
        UserError: There is nothing there yet, or it is damaged, no checkpoint, or that of another model.

    Example:
        >>> load_model("nowhere")
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: nowhere: no such run or weights; train a model first with: convattn train
    """
    source = find_weights(Path(path))
    if source.suffix in EXPORTED:
        from convattn.export import open_exported

        target = _torch_device("cpu" if device == "auto" else device)
        model, description = open_exported(source, target)
        fields = Description.parse(description, source)
    else:
        description, fields, weights = read_weights(source, trust=trust)
        target = _torch_device(device)
        model = fields.build(source) if model is None else model
        load_weights(model, weights, fields.recipe.model, source)
    model = model.eval().to(target)
    if precision != "float32":
        if source.suffix in EXPORTED:
            raise UserError(f"{source}: a file has the precision that it was exported with; leave --precision out")
        _compute_in(model, HALVES[precision], target)
    return LoadedModel.of(model, description, fields, source, target)


def _compute_in(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Have a network compute in half precision; it stays of its class, by which others tell what it is."""
    forward = torch.autocast(device.type, dtype)(model.forward)

    def in_half(*inputs: Any) -> Any:
        return tree_map_only(Tensor, lambda found: found.float() if found.dtype == dtype else found, forward(*inputs))

    model.forward = in_half


def read_weights(source: Path, *, trust: bool = False) -> tuple[dict[str, str], Description, dict[str, Tensor]]:
    """Return what a weights file or a checkpoint says of itself, as it is and checked, and its tensors."""
    read = _read_safetensors if source.suffix == ".safetensors" else _read_checkpoint
    description, weights = read(source)
    fields = Description.parse(description, source)
    refuse_reaching(str(source), fields.reaching(), trust=trust)
    return description, fields, weights


def with_tta(loaded: LoadedModel) -> LoadedModel:
    """Return a model that answers with each image and its mirror image: more exact, in twice the time."""
    return replace(loaded, model=task_of(loaded.recipe).mirrored(loaded.model).eval())


def run_of(path: Path) -> Path:
    """Return the run folder that a weights file or a checkpoint lies in; anything else as it is."""
    for folder in (path.parent, path.parent.parent):
        if path.is_file() and (folder / "config.yaml").is_file():
            return folder
    return path


def own_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe | None:
    """Return the recipe of the run that a file lies in, whose images are wanted; None where it lies in none."""
    config = run_of(path) / "config.yaml"
    return read_recipe(config, overrides, trust=True) if config.is_file() else None  # no network is built of it


def find_weights(path: Path) -> Path:
    """Return the file to load for a run folder or a file; raise a :class:`UserError` where there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such run or weights; train a model first with: convattn train")
    for name in ("weights.safetensors", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (path / name).is_file():
            return path / name
    if (path / "config.yaml").is_file():
        raise UserError(
            f"{path}: this run has no weights yet, it stopped before its first checkpoint; "
            f"go on with: convattn train --resume {path}"
        )
    raise UserError(
        f"{path}: not a run folder (no weights.safetensors, no checkpoints/); "
        "give a folder that convattn train wrote, such as runs/latest"
    )


def predict(
    loaded: LoadedModel, files: Sequence[str | Path] | Inputs, *, batch_size: int | None = None
) -> Iterator[Answer]:
    """Yield the model's answer on each image in order; one that cannot be read yields one that says why.

    An answer's value is, by the model's task, the logits ``[K]``, torchvision's detections or a label map ``[H, W]``.
    """
    sample = Sample(_no_truth, partial(_without_truth, loaded.transform))
    images = files if isinstance(files, Inputs) else Inputs([Input(Path(file), str(file)) for file in files])
    return _answers(loaded, images, sample, batch_size)


def predict_images(
    loaded: LoadedModel, files: Sequence[str | Path], *, top_k: int = 5, batch_size: int | None = None
) -> Iterator[Prediction | SkippedFile]:
    """Yield a classifier's ``top_k`` classes of each image file in order; a bad file a :class:`SkippedFile`."""
    if top_k < 1:
        raise UserError(f"top_k={top_k}: ask for at least one class")
    for answer in predict(loaded, files, batch_size=batch_size):
        if answer.skipped is not None:
            yield answer.skipped
        else:
            best = answer.value.softmax(-1).topk(min(top_k, len(loaded.classes)))
            names = [loaded.classes[index] for index in best.indices.tolist()]
            yield Prediction(str(files[answer.index]), names, best.values.tolist())


def evaluate(
    loaded: LoadedModel,
    images: Any,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measure a model on annotated images; those that cannot be read are left out and listed.

    Args:
        loaded: The model.
        images: Annotated images of its task, such as its data's ``val``.
        batch_size: Images at a time; None takes what suits the task.
        progress: Called with (images seen, images in all).

    Raises:
        UserError: No image could be read, a label is none of the model's, or the model's output is not finite.
    """
    task, skipped = task_of(loaded.recipe), []

    def read() -> Iterator[Answer]:
        sample = task.evaluation_sample(loaded.recipe, images, loaded.input_size)
        for answer in _answers(loaded, images, sample, batch_size):
            if answer.skipped is None or answer.target is not None:
                yield answer
            if answer.skipped is not None:
                skipped.append(answer.skipped if answer.target is None else counted_wrong(answer.skipped))
            if progress is not None:
                progress(answer.index + 1, len(images))
        if len(skipped) == len(images):
            first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
            raise UserError(f"none of the {len(images)} images can be read{first}")

    return replace(task.scores(images, loaded.classes, read()), skipped=skipped)


def _answers(loaded: LoadedModel, images: NamedImages, sample: Sample, batch_size: int | None) -> Iterator[Answer]:
    """Yield the model's answers in order; what it cannot take, or gives, is said with the file that it came from."""
    task = task_of(loaded.recipe)
    data = replace(loaded.recipe.data, workers=0 if len(images) < FEW or getattr(images, "in_order", False) else None)
    recipe = replace(loaded.recipe, batch_size=batch_size or task.batch, data=data)
    try:
        yield from task.answers(loaded.model, recipe, images, sample, SkipLog())
    except (UserError, torch.OutOfMemoryError):
        raise
    except FloatingPointError as error:
        raise UserError(f"{loaded.source}: {error}") from error
    except (AssertionError, RuntimeError, ValueError) as error:
        if "DataLoader worker" in str(error):
            raise
        raise UserError(f"{loaded.source}: its model cannot take these images: {reason_of(error)}") from error


def _no_truth(index: int) -> None:
    """Return nothing: the image is not annotated."""


def _without_truth(transform: Callable[[Image.Image], Tensor], image: Image.Image, truth: None) -> tuple[Tensor, None]:
    return transform(image), None


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(best_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {first_line(error)}; use cpu") from error
    return device


def _read_safetensors(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        content = source.read_bytes()  # the library opens no path that is not UTF-8
        weights, size = load(content), int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + size]).get("__metadata__") or {}, weights
    except OSError:  # what the system refuses is no fault of the file
        raise
    except (SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        what = reason_of(error)
        raise UserError(f"{source}: no safetensors file, or damaged ({what}); train or fetch it again") from error


def _read_checkpoint(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a Lightning checkpoint: tensors and plain values only, never code."""
    stored = read_whole(source, "give a run folder or a file that convattn train wrote, or train again")
    if not isinstance(stored, dict) or not isinstance(stored.get("state_dict"), dict):
        raise UserError(f"{source}: no checkpoint of convattn train (it has no state_dict); give a run folder")
    description, fault = stored.get(DESCRIPTION) or {}, weights_fault(stored["state_dict"])
    if fault or not isinstance(description, dict):
        raise UserError(f"{source}: no checkpoint of convattn train ({fault or DESCRIPTION}); give a run folder")
    return description, shipped_weights(stored)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str, source: Path) -> None:
    """Copy the weights into the model; raise with what does not fit, and where training diverged."""
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
        "of another type": [
            f"{key} {weights[key].dtype} instead of {value.dtype}"
            for key, value in expected.items()
            if key in weights and weights[key].is_floating_point() != value.is_floating_point()
        ],
    }
    if any(problems.values()):
        lines = [f"{len(keys)} {problem}: {shortened(keys)}" for problem, keys in problems.items() if keys]
        raise UserError(f"{source}: weights of another model than {name}; " + "; ".join(lines))
    diverged = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if diverged:
        raise UserError(
            f"{source}: the weights are not finite ({shortened(diverged)}), the training diverged; "
            "train again with a lower learning rate"
        )
    model.load_state_dict(dict(weights))
