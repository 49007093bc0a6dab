"""How far a file's answers are from PyTorch's, and how long both take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from convattn.export.report import Precision

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
"""The largest difference that rounding explains, relative to the largest output; int8 is measured by its accuracy."""

SURE = 0.1
"""From which score on an object must be in both answers, and the better half in any case: below, rounding decides."""


def difference(
    expected: Sequence[Tensor] | Mapping[str, Tensor], found: Sequence[Tensor] | Mapping[str, Tensor]
) -> float:
    """Of tensors in a sequence, or of a detector's objects by name."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return difference_of_detections(expected, found)
    return difference_of_tensors(list(expected), list(found))  # type: ignore[arg-type]


def difference_of_tensors(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor.

    Example:
        >>> difference_of_tensors([torch.tensor([1.0, 4.0])], [torch.tensor([1.0, 3.0])])
        0.25
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    apart = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs]
    return float("inf") if any(map(math.isnan, apart)) else max(apart, default=0.0)


def difference_of_detections(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """The largest difference of a sure object's score or mask, or of its overlap from 1; 1 where one has no partner.

    Example:
        >>> one = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
        >>> difference_of_detections(one, one), difference_of_detections(one, {**one, "labels": torch.tensor([2])})
        (0.0, 1.0)
    """
    return max(_unmatched(expected, found), _unmatched(found, expected))


def _unmatched(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    if not len(one["boxes"]):
        return 0.0
    sure = one["scores"] >= one["scores"].median().clamp(max=SURE)
    boxes, scores, labels = (one[name][sure] for name in ("boxes", "scores", "labels"))
    if not len(other["boxes"]):
        return 1.0
    apart = torch.maximum(1 - box_iou(boxes, other["boxes"]), (scores[:, None] - other["scores"]).abs())
    nearest = apart.masked_fill(labels[:, None] != other["labels"], 1.0).min(1)
    worst = float(nearest.values.max())
    if "masks" in one and worst < 1:
        masks = (one["masks"][sure] - other["masks"][nearest.indices]).abs()
        worst = max(worst, float(masks.flatten(1).mean(1).max()))
    return worst


def latency_ms(run: Callable[[], object], *, seconds: float = 1.0) -> float:
    """The median time of a call in milliseconds, after a first one."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
