"""Validation images as pictures inside the page: those that the model got wrong, those that it hardly got right."""

import math
from collections.abc import Sequence

from convattn.data.images import ImageError
from convattn.data.types import LabelledImages
from convattn.report.markup import escape, percent
from convattn.report.pictures import embed
from convattn.report.run import PredictionRow

PICTURES_LIMIT = 48
UNSURE_LIMIT = 14


def worst_first(predictions: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Return the wrong predictions, the most confident first."""
    wrong = [row for row in predictions if row.label != row.predicted]
    return sorted(wrong, key=lambda row: (-row.probability if math.isfinite(row.probability) else 0.0, row.index))


def least_sure(predictions: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Return the right predictions of the lowest probability, the least sure first."""
    right = [row for row in predictions if row.label == row.predicted and math.isfinite(row.probability)]
    return sorted(right, key=lambda row: (row.probability, row.index))[:UNSURE_LIMIT]


def gallery_html(rows: Sequence[PredictionRow], classes: Sequence[str], images: LabelledImages) -> str:
    """Return the first of the predictions as pictures with the true and the predicted class."""
    if not rows:
        return ""
    cards = "".join(_card(row, classes, images) for row in rows[:PICTURES_LIMIT])
    return f'<ul class="gallery">{cards}</ul>'


def _card(row: PredictionRow, classes: Sequence[str], images: LabelledImages) -> str:
    name, truth, said = escape(row.name), escape(classes[row.label]), escape(classes[row.predicted])
    right = row.label == row.predicted
    alt = f"{name}: {truth}, recognised" if right else f"{name}: {truth}, taken for {said}"
    kind, sure = "said good" if right else "said", percent(row.probability, 0)
    try:
        picture = f'<img alt="{alt}" {embed(images.image(row.index))}>'
    except (ImageError, IndexError):
        picture = '<div class="lost">cannot be read</div>'
    return (
        f'<li>{picture}<div class="{kind}"><small>said</small> {said} <small>{sure}</small></div>'
        f'<div><small>is</small> {truth}</div><div class="file" title="{name}">{name}</div></li>'
    )
