"""What a network answers on images, how it is written, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from convattn.data.types import SkippedFile
from convattn.tasks.building import NOT_FINITE, diverged
from convattn.tasks.loaders import NamedImages


@dataclass(frozen=True)
class Answer:
    """What a network answers on an image, with the image's place and target.

    ``skipped`` says why there is no ``value``: the image cannot be read, or the network's output on it is not finite.
    An answer that has a target and no value counts as wrong.
    """

    index: int
    value: Any = None
    target: Any = None
    skipped: SkippedFile | None = None


def with_reasons(answers: Iterable[Answer], images: NamedImages) -> Iterator[Answer]:
    """Yield answers; one that has no value since the network's output is not finite says so.

    Raises:
        FloatingPointError: No image has an answer, and of one the output is not finite.
    """
    answered = failed = False
    for one in answers:
        answered |= one.value is not None
        if one.value is None and one.skipped is None:
            one, failed = replace(one, skipped=SkippedFile(images.name(one.index), NOT_FINITE)), True
        yield one
    if failed and not answered:
        raise diverged()


def counted_wrong(file: SkippedFile) -> SkippedFile:
    """Return an image that the network has no answer on, with what follows from that for the figures."""
    return SkippedFile(file.path, f"{file.reason}; it counts as wrong")


@dataclass(frozen=True)
class Scores:
    """How good a network is on annotated images.

    ``per_class`` has a row for each class: its name (``class``), counts and parts of one, NaN where there is nothing
    to measure. ``skipped`` are the images that cannot be read, or that the network has no answer on.
    """

    images: int
    figures: dict[str, float]
    per_class: list[dict[str, Any]]
    skipped: list[SkippedFile] = field(default_factory=list)


@dataclass(frozen=True)
class AnswerOptions:
    """Options of answers: the lowest score of an object, a COCO file that has the images' ids, classes an image."""

    run: Path
    min_score: float | None = None
    annotations: Path | None = None
    top_k: int = 5


class Pictures:
    """Answers on images, drawn and written into a folder; ``also`` names what is written beside the pictures."""

    also: str

    def files(self, names: Sequence[str]) -> list[str]:
        """Return the files that are written beside the pictures of these names."""
        raise NotImplementedError

    def begin(self) -> None:
        """Write what comes before the first picture, once the folder is there."""

    def draw(self, name: str, image: Image.Image, answer: Answer) -> tuple[Image.Image, str]:
        """Write one image's answer, and return its picture and a line on it."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the last picture, also where the work is broken off."""

    def remark(self) -> str:
        """Return what there is to say in the end."""
        return ""
