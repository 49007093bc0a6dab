"""Which classes are taken for which: the confusion matrix, the most confused pairs and the accuracy of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convattn.report.pictures import Picture, data_url
from convattn.report.run import PredictionRow
from convattn.report.task import Bar, Table
from convattn.report.text import percent

CELLS_LIMIT = 24
"""Up to so many classes the matrix is a table with numbers; of more it is a picture."""

PAIRS_LIMIT = 15


@dataclass(frozen=True)
class Confusion:
    """Counts of validation images by true class (rows) and predicted class (columns)."""

    classes: Sequence[str]
    counts: np.ndarray

    @classmethod
    def of(cls, classes: Sequence[str], predictions: Sequence[PredictionRow]) -> "Confusion":
        """Count the predictions."""
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for row in predictions:
            counts[row.label, row.predicted] += 1
        return cls(classes, counts)

    @property
    def wrong(self) -> int:
        """How many images were taken for another class."""
        return int(self.counts.sum() - np.trace(self.counts))

    @property
    def rates(self) -> np.ndarray:
        """The counts as parts of their row; zero in a row without images."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(totals, 1)

    def pairs(self) -> list[tuple[int, int, int]]:
        """Return (count, true class, predicted class) of all confusions, the most frequent first."""
        found = np.argwhere(self.counts * ~np.eye(len(self.classes), dtype=bool))
        triples = [(int(self.counts[i, j]), int(i), int(j)) for i, j in found]
        return sorted(triples, key=lambda triple: (-triple[0], triple[1], triple[2]))


@dataclass(frozen=True)
class Matrix:
    """The matrix as a table: counts and strengths of colour [N][N], the side of a cell in pixels, a tall heading."""

    counts: list[list[int]]
    strengths: list[list[float]]
    cell: int
    is_tall: bool


@dataclass(frozen=True)
class Pairs:
    """The most frequent confusions of images or pixels; no table where all were recognised."""

    unit: str
    table: Table | None = None
    note: str = ""


def matrix(confusion: Confusion) -> Matrix | None:
    """Return the matrix as a table, None where it has too many classes for one."""
    names = confusion.classes
    if not names or len(names) > CELLS_LIMIT:
        return None
    # A single confusion among hundreds of hits must still be seen.
    strengths = (0.15 + 0.75 * confusion.rates**0.7).tolist()
    cell = min(max(460 // len(names), 28), 54)
    return Matrix(confusion.counts.tolist(), strengths, cell, len(names) > 10 or max(map(len, names)) > 4)


def matrix_picture(confusion: Confusion) -> Picture:
    """Return the matrix as a picture with a pixel per cell, its strength in the alpha channel: it suits any theme."""
    rates = confusion.rates
    hit = np.eye(len(rates), dtype=bool)
    strength = np.where(rates > 0, 0.2 + 0.8 * np.sqrt(rates), 0.0)
    pixels = np.empty((*rates.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(hit[..., None], (37, 99, 235), (217, 70, 20))
    pixels[..., 3] = np.round(255 * strength)
    alt = (
        f"Confusion matrix of {len(rates)} classes: {confusion.counts.sum() - confusion.wrong} images on the diagonal, "
        f"{confusion.wrong} beside it; the most confused pairs are listed next to it."
    )
    return Picture(alt, data_url(Image.fromarray(pixels), "PNG", optimize=True))


def class_accuracies(confusion: Confusion) -> list[Bar]:
    """Return the accuracy of each class, the weakest first."""
    totals, rights = confusion.counts.sum(axis=1), np.diag(confusion.counts)
    bars = [
        Bar(name, right / total, f"{right} of {total}")
        for name, right, total in zip(confusion.classes, rights, totals, strict=True)
        if total
    ]
    return sorted(bars, key=lambda bar: bar.part)


def most_confused(confusion: Confusion, unit: str, digits: int = 0) -> Pairs:
    """Return the most frequent confusions.

    Args:
        confusion: The counts.
        unit: What is counted: "image".
        digits: Of the percentages.
    """
    pairs = confusion.pairs()
    if not pairs:
        return Pairs(unit)
    rows = [
        (confusion.classes[i], confusion.classes[j], value, percent(confusion.rates[i, j], digits))
        for value, i, j in pairs[:PAIRS_LIMIT]
    ]
    note = f"the first {PAIRS_LIMIT} of {len(pairs)} pairs" if len(pairs) > PAIRS_LIMIT else ""
    return Pairs(unit, Table("Most confused pairs", ("true", "taken for", f"{unit}s", "of class"), rows), note)
