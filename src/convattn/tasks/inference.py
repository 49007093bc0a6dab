"""Use a trained model: load it from wherever training left it, predict on images, evaluate on labelled ones."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

import convattn.models  # noqa: F401  registers the models with timm
from convattn.data.images import ImageError, open_image
from convattn.data.types import LabelledImages, SkippedFile
from convattn.errors import UserError
from convattn.tasks.archives import read_archive, weights_fault
from convattn.tasks.building import first_line
from convattn.tasks.checkpoints import DESCRIPTION, shipped_weights
from convattn.tasks.config import EvaluationConfig, TaskName
from convattn.tasks.described import Description
from convattn.tasks.devices import best_device
from convattn.tasks.reach import refuse_reaching

EXPORTED = (".onnx", ".xml", ".pt2", ".torchscript")
"""How files of ``convattn export`` end. What opens them is imported for these alone."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in evaluation mode, with all that it takes to feed it and to read its answers.

    ``transform`` gives what the model of a task takes; ``evaluation`` is how a segmenter sees an image. For
    ``category_ids`` and ``min_score`` of a detector see :class:`~convattn.tasks.described.Description`, which is read
    from the weights' ``description``.
    """

    model: nn.Module
    classes: list[str]
    transform: Callable[[Image.Image], Tensor]
    input_size: tuple[int, int, int]
    name: str
    source: Path
    device: torch.device
    task: TaskName = "classification"
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    category_ids: list[int] = field(default_factory=list)
    min_score: float | None = None
    description: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first."""

    file: str
    classes: list[str]
    probabilities: list[float]


@dataclass(frozen=True)
class ClassScore:
    """How a class was recognised; ``accuracy`` is None where the data held no image of it."""

    name: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """The part of the class's images that were recognised."""
        return self.correct / self.images if self.images else None


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on labelled images."""

    images: int
    top1: float
    top5: float
    loss: float
    per_class: list[ClassScore]
    skipped: list[SkippedFile]


def load_model(path: str | Path, *, device: str = "cpu", trust: bool = False) -> LoadedModel:
    """Load a model from a run folder, a ``weights.safetensors``, a checkpoint or a file of ``convattn export``.

    A run folder gives its ``weights.safetensors``, or its best or last checkpoint where training has not ended.

    Args:
        path: The run folder or the file.
        device: Where the model is to run; "auto" is a GPU where there is one.
        trust: Whether the file may name a network that opens other files or the network: ``hf-hub:owner/name``.

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
        read = _read_safetensors if source.suffix == ".safetensors" else _read_checkpoint
        description, weights = read(source)
        fields = Description.parse(description, source)
        refuse_reaching(str(source), fields.reaching(), trust=trust)
        target = _torch_device(device)
        model = fields.build(source)
        _load_weights(model, weights, fields.name, source)
    return LoadedModel(
        model=model.eval().to(target),
        classes=fields.classes,
        transform=fields.transform(),
        input_size=fields.input_size,
        name=fields.name if fields.network.head is None else f"{fields.network.head} on {fields.name}",
        source=source,
        device=target,
        task=fields.task,
        evaluation=fields.evaluation,
        category_ids=fields.category_ids,
        min_score=fields.min_score,
        description=description,
    )


def run_of(path: Path) -> Path:
    """Return the run folder that a weights file or a checkpoint lies in; anything else as it is."""
    for folder in (path.parent, path.parent.parent):
        if path.is_file() and (folder / "config.yaml").is_file():
            return folder
    return path


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


def predict_images(
    loaded: LoadedModel, files: Iterable[str | Path], *, top_k: int = 5, batch_size: int = 32
) -> Iterator[Prediction | SkippedFile]:
    """Yield the ``top_k`` classes of each image file in order; a bad file yields a :class:`SkippedFile`."""
    if top_k < 1:
        raise UserError(f"top_k={top_k}: ask for at least one class")
    count = min(top_k, len(loaded.classes))
    for batch in _batches(files, batch_size):
        read = _read_batch(loaded, lambda file: open_image(file), batch, str)
        logits = _logits(loaded, [item for item in read if isinstance(item, Tensor)])
        probabilities, indices = logits.softmax(-1).topk(count)
        rows = iter(zip(probabilities.tolist(), indices.tolist(), strict=True))
        for file, item in zip(batch, read, strict=True):
            if isinstance(item, SkippedFile):
                yield item
            else:
                row, order = next(rows)
                yield Prediction(str(file), [loaded.classes[index] for index in order], row)


def evaluate(
    loaded: LoadedModel,
    images: LabelledImages,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model on labelled images; those that cannot be read are left out and listed.

    Raises:
        UserError: No image could be read, a label is none of the model's, or the model's output is not finite.
    """
    classes = len(loaded.classes)
    seen, correct = torch.zeros(classes, dtype=torch.long), torch.zeros(classes, dtype=torch.long)
    loss, in_top5, skipped = 0.0, 0, []
    for batch in _batches(range(len(images)), batch_size):
        read = _read_batch(loaded, images.image, batch, images.name)
        skipped += [item for item in read if isinstance(item, SkippedFile)]
        kept = [index for index, item in zip(batch, read, strict=True) if isinstance(item, Tensor)]
        labels = torch.tensor([_checked_label(images, index, classes) for index in kept], dtype=torch.long)
        logits = _logits(loaded, [item for item in read if isinstance(item, Tensor)])
        hits = logits.topk(min(5, classes)).indices == labels[:, None]
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        in_top5 += int(hits.sum())
        seen += labels.bincount(minlength=classes)
        correct += labels[hits[:, 0]].bincount(minlength=classes)
        if progress is not None:
            progress(batch[-1] + 1, len(images))
    total = int(seen.sum())
    if not total:
        first = f"; the first: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"none of the {len(images)} images can be read{first}")
    scores = zip(loaded.classes, seen.tolist(), correct.tolist(), strict=True)
    return Evaluation(
        images=total,
        top1=int(correct.sum()) / total,
        top5=in_top5 / total,
        loss=loss / total,
        per_class=[ClassScore(*score) for score in scores],
        skipped=skipped,
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _read_batch(
    loaded: LoadedModel, read: Callable[[T], Image.Image], items: Sequence[T], name: Callable[[T], str]
) -> list[Tensor | SkippedFile]:
    """Read and transform a batch in threads; an image that cannot be read gives a :class:`SkippedFile`."""

    def one(item: T) -> Tensor | SkippedFile:
        try:
            return loaded.transform(read(item))
        except ImageError as error:
            return SkippedFile(name(item), error.reason)

    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(one, items))


@torch.inference_mode()
def _logits(loaded: LoadedModel, inputs: list[Tensor]) -> Tensor:
    """Run the model on a batch; the logits come back in fp32 on the CPU."""
    if not inputs:
        return torch.empty(0, len(loaded.classes))
    try:
        logits = loaded.model(torch.stack(inputs).to(loaded.device)).float().cpu()
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, inputs[0].shape[1:]))
        raise UserError(f"{loaded.source}: its model cannot take images of {size}: {first_line(error)}") from error
    if logits.shape != (len(inputs), len(loaded.classes)):
        raise UserError(f"{loaded.source}: its model does not give one logit for each of its classes; train again")
    if not logits.isfinite().all():
        raise UserError(
            f"{loaded.source}: the model's output is not finite, its training diverged; "
            "train again with a lower learning rate"
        )
    return logits


def _checked_label(images: LabelledImages, index: int, classes: int) -> int:
    label = images.label(index)
    if not 0 <= label < classes:
        raise UserError(f"{images.name(index)}: its label is {label}, the model's classes are 0 to {classes - 1}")
    return label


def _torch_device(name: str) -> torch.device:
    try:
        device = torch.device(best_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; use cpu") from error
    return device


def _read_safetensors(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        content = source.read_bytes()  # the library opens no path that is not UTF-8
        weights, size = load(content), int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + size]).get("__metadata__") or {}, weights
    except OSError:  # what the system refuses is no fault of the file
        raise
    except (SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        what = first_line(error)
        raise UserError(f"{source}: no safetensors file, or damaged ({what}); train or fetch it again") from error


def _read_checkpoint(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a Lightning checkpoint: tensors and plain values only, never code."""
    stored = read_archive(source, "give a run folder or a file that convattn train wrote, or train again")
    if not isinstance(stored, dict) or not isinstance(stored.get("state_dict"), dict):
        raise UserError(f"{source}: no checkpoint of convattn train (it has no state_dict); give a run folder")
    description, fault = stored.get(DESCRIPTION) or {}, weights_fault(stored["state_dict"])
    if fault or not isinstance(description, dict):
        raise UserError(f"{source}: no checkpoint of convattn train ({fault or DESCRIPTION}); give a run folder")
    return description, shipped_weights(stored)


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str, source: Path) -> None:
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
        lines = [f"{len(keys)} {problem}: {_shorten(keys)}" for problem, keys in problems.items() if keys]
        raise UserError(f"{source}: weights of another model than {name}; " + "; ".join(lines))
    diverged = [key for key, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if diverged:
        raise UserError(
            f"{source}: the weights are not finite ({_shorten(diverged)}), the training diverged; "
            "train again with a lower learning rate"
        )
    model.load_state_dict(dict(weights))


def _shorten(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
