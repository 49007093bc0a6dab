"""Which classes are taken for which: the confusion matrix, the most confused pairs and the accuracy of each class."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convattn.report.bars import Bar, bars_html
from convattn.report.markup import escape, figure, percent, scroll, table
from convattn.report.run import PredictionRow

CELLS_LIMIT = 24
"""Up to so many classes the matrix is a table with numbers; of more it is a picture."""

PAIRS_LIMIT = 15

_NO_PAIR = "Every validation {} was recognised."


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


def matrix_html(confusion: Confusion) -> str:
    """Return the matrix as a table of numbers, or as a picture where it has too many classes for one."""
    if not confusion.counts.sum():
        return ""
    small = len(confusion.classes) <= CELLS_LIMIT
    matrix = _cells(confusion) if small else _picture(confusion)
    note = "rows: the true class; columns: what the model said; the stronger the colour, the larger the part of its row"
    return f'<div class="split">{figure(matrix, "Confusion matrix", note)}{pairs_html(confusion)}</div>'


def classes_html(confusion: Confusion) -> str:
    """Return the accuracy of each class as bars, the weakest first."""
    totals = confusion.counts.sum(axis=1)
    order = [index for index in range(len(totals)) if totals[index]]
    order.sort(key=lambda index: (confusion.rates[index, index], index))
    return bars_html([_bar(confusion, index) for index in order])


def _bar(confusion: Confusion, index: int) -> Bar:
    right, total = int(confusion.counts[index, index]), int(confusion.counts[index].sum())
    return Bar(confusion.classes[index], right / total, f"{right} of {total}")


def _cells(confusion: Confusion) -> str:
    names = [escape(name) for name in confusion.classes]
    rates = confusion.rates
    head = "".join(f'<th scope="col" title="{name}"><span>{name}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_cell(confusion, rates, i, j) for j in range(len(names)))
        rows.append(f'<tr><th scope="row" title="{name}"><span>{name}</span></th>{cells}</tr>')
    cell = min(max(460 // len(names), 28), 54)
    tall = " tall" if len(names) > 10 or max(map(len, confusion.classes)) > 4 else ""
    caption = '<caption class="hidden">Counts by true class and predicted class</caption>'
    return scroll(
        f'<table class="matrix{tall}" style="--cell:{cell}px">{caption}'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        "Confusion matrix",
    )


def _cell(confusion: Confusion, rates: np.ndarray, i: int, j: int) -> str:
    value = int(confusion.counts[i, j])
    if not value:
        return "<td></td>"
    kind = "hit" if i == j else "miss"
    # A single confusion among hundreds of hits must still be seen.
    strength = 0.15 + 0.75 * float(rates[i, j]) ** 0.7
    strong = " strong" if strength > 0.5 else ""
    title = f"{confusion.classes[i]} taken for {confusion.classes[j]}: {value}" if i != j else ""
    hint = f' title="{escape(title)}"' if title else ""
    return f'<td class="{kind}{strong}" style="--a:{strength:.2f}"{hint}>{value}</td>'


def _picture(confusion: Confusion) -> str:
    """Return the matrix as a picture with a pixel per cell, its strength in the alpha channel: it suits any theme."""
    rates = confusion.rates
    hit = np.eye(len(rates), dtype=bool)
    strength = np.where(rates > 0, 0.2 + 0.8 * np.sqrt(rates), 0.0)
    pixels = np.empty((*rates.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(hit[..., None], (37, 99, 235), (217, 70, 20))
    pixels[..., 3] = np.round(255 * strength)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    source = base64.b64encode(buffer.getvalue()).decode()
    alt = (
        f"Confusion matrix of {len(rates)} classes: {confusion.counts.sum() - confusion.wrong} images on the diagonal, "
        f"{confusion.wrong} beside it; the most confused pairs are listed next to it."
    )
    return f'<img class="matrix-picture" alt="{escape(alt)}" src="data:image/png;base64,{source}">'


def pairs_html(confusion: Confusion, unit: str = "images", digits: int = 0) -> str:
    """Return the most frequent confusions as a table.

    Args:
        confusion: The counts.
        unit: What is counted.
        digits: Of the percentages.
    """
    pairs = confusion.pairs()
    if not pairs:
        return figure(f'<p class="good">{_NO_PAIR.format(unit[:-1])}</p>', "Most confused")
    totals = Counter({index: int(total) for index, total in enumerate(confusion.counts.sum(axis=1))})
    rows = [
        (confusion.classes[i], confusion.classes[j], value, percent(value / totals[i], digits))
        for value, i, j in pairs[:PAIRS_LIMIT]
    ]
    note = f"the first {PAIRS_LIMIT} of {len(pairs)} pairs" if len(pairs) > PAIRS_LIMIT else ""
    return figure(
        table(("true", "taken for", unit, "of class"), rows, caption="Most confused pairs"), "Most confused", note
    )
