"""How far a classifier's probabilities can be trusted: accuracy by confidence, and the expected calibration error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convattn.data.names import counted
from convattn.publishing import wilson_interval
from convattn.report.charts import Chart, reliability_chart
from convattn.report.run import PredictionRow
from convattn.report.text import percent

BINS = 15
"""Of equal width from 0 to 1, as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""


@dataclass(frozen=True)
class ConfidenceBin:
    """The images of which the model was about equally sure: which bin, how many, how sure, how many it got right."""

    place: int
    images: int
    confidence: float
    right: int

    @property
    def accuracy(self) -> float:
        """The part that it got right."""
        return self.right / self.images


def confidence_bins(predictions: Sequence[PredictionRow], bins: int = BINS) -> list[ConfidenceBin]:
    """Return the bins that have images, the least sure first; a bin has its upper edge, the first its lower one too.

    Example:
        >>> rows = [PredictionRow(0, "a", 1, 1, 0.9), PredictionRow(1, "b", 1, 0, 0.92), PredictionRow(2, "c", 0, 0, 1)]
        >>> [(one.images, round(one.confidence, 2), one.right) for one in confidence_bins(rows, 10)]
        [(1, 0.9, 1), (2, 0.96, 1)]
    """
    confidence, right = _known(predictions)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = ((place == one) for one in range(bins))
    return [
        ConfidenceBin(one, int(inside.sum()), float(confidence[inside].mean()), int(right[inside].sum()))
        for one, inside in enumerate(found)
        if inside.any()
    ]


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Return the expected calibration error (ECE): the mean gap of accuracy and confidence of the bins, by images.

    NaN without images. With few images in each bin it is above 0 even where the probabilities are right.

    Example:
        >>> round(calibration_error([ConfidenceBin(1, 3, 0.9, 3), ConfidenceBin(0, 1, 0.6, 0)]), 3)
        0.225
    """
    images = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / images if images else math.nan


def reliability(predictions: Sequence[PredictionRow]) -> Chart | None:
    """Return the reliability diagram with its ECE; None without probabilities."""
    found = confidence_bins(predictions)
    if not found:
        return None
    error, images = calibration_error(found), sum(one.images for one in found)
    parts = np.zeros(BINS)
    parts[[one.place for one in found]] = [one.images / images for one in found]
    said = ", ".join(f"{percent(one.accuracy, 0)} right at {percent(one.confidence, 0)}" for one in found)
    svg = reliability_chart(
        [one.confidence for one in found],
        [one.accuracy for one in found],
        [wilson_interval(one.right, one.images) for one in found],
        parts.tolist(),
        alt=f"Accuracy by confidence: {said}.",
    )
    over = sum(one.images * (one.confidence - one.accuracy) for one in found) / images
    lean = "surer than right" if over > 0 else "less sure than right"
    note = (
        f"expected calibration error (ECE) {percent(error)}, {BINS} bins, {counted(images, 'image')}; on average the "
        f"model is {percent(abs(over))} {lean}. Dashed: where the two are equal. Lines: Wilson's 95 % intervals. "
        "Bars: the part of the images"
    )
    return Chart("Accuracy by confidence", svg, note)


def _known(predictions: Sequence[PredictionRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, of those that are known, and whether each answer was right."""
    rows = [row for row in predictions if 0 <= row.probability <= 1]
    right = np.array([row.label == row.predicted for row in rows], dtype=np.int64)
    return np.array([row.probability for row in rows], dtype=np.float64), right
