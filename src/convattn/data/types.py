"""What a data set of labelled images is, for everything that reads one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from PIL import Image

Split = Literal["train", "val", "test"]
"""A part of a data set."""

Item = tuple[str, int]
"""An image's path below the data folder, and its label."""

Pair = tuple[str, str]
"""An image's path below the data folder, and its label map's."""

Images = TypeVar("Images")

Named = tuple[str, str]
"""An image's path below the data folder, and the name of its class."""


@runtime_checkable
class LabelledImages(Protocol):
    """Images with a class each, read one at a time by their index."""

    def __len__(self) -> int:
        """Return how many images there are."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB."""
        ...

    def label(self, index: int) -> int:
        """Return the class of image ``index``, without opening it."""
        ...

    def name(self, index: int) -> str:
        """Return the name that a person knows image ``index`` by: its path below the data folder, or "digit 1234"."""
        ...


@runtime_checkable
class FetchedImages(Protocol):
    """Images of which several are read faster together than one by one."""

    def fetch(self, indices: Sequence[int]) -> None:
        """Have these images at hand: they are read next."""
        ...


@dataclass(frozen=True)
class SkippedFile:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DataSet(Generic[Images]):
    """A data set to train on: its classes, the two splits and the files that were left out."""

    classes: list[str]
    train: Images
    val: Images
    skipped: list[SkippedFile] = field(default_factory=list)


ClassificationData: TypeAlias = DataSet[LabelledImages]
"""A data set for classification."""
