"""What a trained model looks at in an image: its answer, Grad-CAM, a pixel's attention and the paths of its layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convattn.errors import UserError
from convattn.explain import Explanation, PathMaps, explain
from convattn.report.heat import Heat
from convattn.report.looks import Look, PathHeats
from convattn.report.palette import background_of
from convattn.tasks.answers import Answer, AnswerOptions
from convattn.tasks.building import refused
from convattn.tasks.inference import EXPORTED, LoadedModel, predict
from convattn.tasks.inputs import Input, Inputs
from convattn.tasks.loaders import input_settings
from convattn.tasks.records import Row
from convattn.tasks.task import task_of

MOST_LAYERS = 6

NO_ATTENTION = (
    "Attention maps are of ACmix, X-volution and this library's other attention layers (local, window, global, "
    "patchwise, pairwise, spatial reduction); this network has none of them, so there is Grad-CAM alone."
)

Mapped = TypeVar("Mapped")


@dataclass(frozen=True)
class Photo(Inputs):
    """One image that has been read."""

    photo: Image.Image

    @classmethod
    def of(cls, image: Image.Image, name: str) -> Photo:
        """Return an image under a name."""
        return cls([Input(Path(name), name)], image.convert("RGB"))

    def image(self, index: int) -> Image.Image:
        """Return it."""
        return self.photo


class Explained:
    """A model's answer on an image, and what it looked at; other pixels can be asked for.

    Args:
        loaded: The model.
        photo: The image.
        options: Of the answer.

    Raises:
        UserError: The model is an exported file, or cannot take the image.
    """

    def __init__(self, loaded: LoadedModel, photo: Photo, options: AnswerOptions) -> None:
        check_network(loaded)
        self.loaded, self.photo, self.task = loaded, photo, task_of(loaded.recipe)
        (answer,) = predict(loaded, photo)
        if answer.skipped is not None:
            raise UserError(f"{answer.skipped.path}: {answer.skipped.reason}")
        self.answer: Answer = answer
        self.records = self.task.records(loaded, [Path(photo.name(0))], options)
        self.options = options
        tensor = loaded.transform(photo.photo)[None].to(loaded.device)
        inner = self.task.as_seen(loaded.model, loaded.recipe, tensor)
        self.inner = int(inner.shape[-2]), int(inner.shape[-1])
        self.of = ""
        with refused(f"{loaded.source}: its model cannot be looked into"):
            self.found: Explanation = explain(self._network(), lambda: self._score(inner, tensor))

    @property
    def rows(self) -> list[Row]:
        """The answer as data."""
        return [{key: value for key, value in row.items() if key in self.records.columns} for row in self._rows]

    @cached_property
    def _rows(self) -> list[Row]:
        return self.records.rows(self.answer)

    @cached_property
    def seen(self) -> Image.Image:
        """What the network sees: the photograph, or the part of it that the transform cuts out."""
        return _as_image(self._crop(self.photo.photo)) if self._is_cut else self.photo.photo

    @property
    def _is_cut(self) -> bool:
        return self.task.image_sizes == "one"

    def _crop(self, image: Image.Image) -> Tensor:
        """Return an image as the transform cuts it, ``[3, h, w]`` from 0 to 1."""
        _, mean, std, _ = input_settings(self.loaded.recipe)
        shape = (3, 1, 1)
        return self.loaded.transform(image) * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)

    def look(self, pixel: tuple[int, int] | None = None) -> Look:
        """Return what the network looked at.

        Args:
            pixel: x and y, in the photograph, of the pixel whose attention is shown; None: where Grad-CAM is highest.

        Raises:
            UserError: The pixel is not on the photograph, or not on the part of it that the network sees.
        """
        row, column = self._default() if pixel is None else self._from_photo(*pixel)
        x, y = self._to_photo(row, column) if pixel is None else pixel
        attention = [
            Heat(one.layer, (one.weights / one.weights.max()).numpy(), self._covered, blocks=True)
            for one in _last_of_each_size(self.found.attention_at((row, column)), lambda one: one.weights)
        ]
        picture, said = self._drawn()
        cam = self.found.cam
        return Look(
            name=self.photo.name(0),
            answer=picture,
            said=said,
            seen=self.seen,
            cam=None if cam is None else Heat(self.found.cam_layer, cam.numpy(), self._covered),
            cam_of=self.of,
            pixel=(x, y),
            mark=(column / self.inner[1], row / self.inner[0]),
            attention=attention,
            paths=[self._heats(one) for one in _last_of_each_size(self.found.paths, lambda one: one.attention)],
            remark="" if attention else NO_ATTENTION,
        )

    @property
    def _covered(self) -> tuple[float, float]:
        """The parts of the network's input that the image fills; the rest is padding at the bottom and at the right."""
        height, width = (min(1.0, inner / outer) for inner, outer in zip(self.inner, self.found.size, strict=True))
        return height, width

    def _network(self) -> nn.Module:
        """Return the part to look into: the recipe's own model, below what a task puts on it."""
        parts: list[nn.Module] = []

        def keep(part: nn.Module) -> nn.Module:
            parts.append(part)
            return part

        self.task.with_backbone(self.loaded.model, keep)
        return parts[0]

    def _score(self, inner: Tensor, tensor: Tensor) -> Tensor:
        """Run the model, and return the score of its answer; a detector resizes the image itself."""
        model, classes, value = self.loaded.model, self.loaded.classes, self.answer.value
        if isinstance(value, Mapping):
            (output,) = model([tensor[0]])
            return self._score_of_objects(output["scores"])
        logits = model(inner)
        logits = logits - logits.mean(1, keepdim=True)  # an answer means the same whatever is added to all logits
        if isinstance(value, np.ndarray):
            label = _largest(value, classes)
            self.of = f"the pixels of {classes[label]}"
            found = logits[:, label] * (logits.argmax(1) == label)
            return found.sum() if bool(found.any()) else logits[:, label].mean()
        label = int(value.argmax())
        self.of = classes[label]
        return logits[0, label]

    def _score_of_objects(self, scores: Tensor) -> Tensor:
        kept = len(self._rows)
        if kept:
            self.of = "the object" if kept == 1 else f"the {kept} objects"
        else:
            self.of = "the surest object, too weak to be shown" if len(scores) else "nothing: there is no object"
        return scores.sort(descending=True).values[: max(kept, 1)].sum()

    def _drawn(self) -> tuple[Image.Image, str]:
        """Return the answer as a picture and in words."""
        if not self.task.files:
            first = self._rows[0]
            return self.photo.photo, f"{first['class']}, {first['probability']:.1%}"
        with tempfile.TemporaryDirectory(prefix="convattn-") as folder:
            pictures = self.task.pictures(self.loaded, [Path(self.photo.name(0))], Path(folder), self.options)
            pictures.begin()
            return pictures.draw("image.png", self.photo.photo, self.answer)

    def _heats(self, paths: PathMaps) -> PathHeats:
        largest = max(float(paths.attention.max()), float(paths.convolution.max())) or 1.0
        attention, convolution = (
            Heat(paths.layer, (part / largest).numpy(), self._covered) for part in (paths.attention, paths.convolution)
        )
        return PathHeats(attention, convolution, Heat(paths.layer, paths.share.numpy(), self._covered))

    def _default(self) -> tuple[float, float]:
        """Return row and column of the pixel where Grad-CAM is highest, of those on the image."""
        if self.found.cam is None:
            return self.inner[0] / 2, self.inner[1] / 2
        cam = self.found.cam
        rows, columns = (max(1, round(part * size)) for part, size in zip(self._covered, cam.shape, strict=True))
        best = divmod(int(cam[:rows, :columns].argmax()), columns)
        row, column = (
            min((place + 0.5) / size * whole, inner - 0.5)
            for place, size, whole, inner in zip(best, cam.shape, self.found.size, self.inner, strict=True)
        )
        return row, column

    @cached_property
    def _places(self) -> np.ndarray:
        """Where each pixel of a cut-out comes from, x and y in parts of the photograph, ``[2, h, w]``.

        Found by cutting an image whose colours are its coordinates: so it is right for any transform.
        """
        width, height = self.photo.photo.size
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        ramps = Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8))
        return self._crop(ramps)[:2].numpy()

    def _to_photo(self, row: float, column: float) -> tuple[int, int]:
        width, height = self.photo.photo.size
        if self._is_cut:
            x, y = self._places[:, int(row), int(column)]
            return round(float(x) * (width - 1)), round(float(y) * (height - 1))
        return int(column / self.inner[1] * width), int(row / self.inner[0] * height)

    def _from_photo(self, x: int, y: int) -> tuple[float, float]:
        width, height = self.photo.photo.size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"pixel {x} {y} is not on {self.photo.name(0)}, which is {width} pixels wide and {height} high: x goes "
                f"from 0 to {width - 1}, y from 0 to {height - 1}"
            )
        if not self._is_cut:
            return (y + 0.5) / height * self.inner[0], (x + 0.5) / width * self.inner[1]
        wanted = np.array([x / max(width - 1, 1), y / max(height - 1, 1)])[:, None, None]
        low, high = (bound((1, 2))[:, None, None] for bound in (self._places.min, self._places.max))
        slack = 1 / np.array(self.inner[::-1])[:, None, None] + 1 / 255
        if (wanted < low - slack).any() or (wanted > high + slack).any():
            sides = (width - 1, height - 1) * 2
            ends = zip((*low.flat, *high.flat), sides, strict=True)
            left, top, right, bottom = (round(float(part) * side) for part, side in ends)
            raise UserError(
                f"pixel {x} {y} is beside the part of {self.photo.name(0)} that the network sees: take x from {left} "
                f"to {right} and y from {top} to {bottom}"
            )
        row, column = divmod(int(np.square(self._places - wanted).sum(0).argmin()), self.inner[1])
        return row + 0.5, column + 0.5


def check_network(loaded: LoadedModel) -> None:
    """Raise for a model that has no layers to look into."""
    if loaded.source.suffix in EXPORTED:
        raise UserError(
            f"{loaded.source}: an exported file has no layers to look into; give the run or the weights that it was"
            " exported from"
        )


def _last_of_each_size(found: Sequence[Mapped], values: Callable[[Mapped], Tensor]) -> list[Mapped]:
    by_size: dict[Any, Mapped] = {}
    for one in found:
        by_size.pop(tuple(values(one).shape), None)
        by_size[tuple(values(one).shape)] = one
    return list(by_size.values())[-MOST_LAYERS:]


def _largest(labels: np.ndarray, classes: Sequence[str]) -> int:
    """Return the class of the most pixels, the background only where there is no other."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
    background = background_of(classes)
    if background is not None and counts.sum() > counts[background]:
        counts[background] = 0
    return int(counts.argmax())


def _as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
