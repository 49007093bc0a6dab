"""The small runs of the tables: recipes and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, str] = {
    "retinanet": "scenes-retinanet",
    "faster_rcnn": "scenes-detection",
    "mask_rcnn": "scenes-instances",
    "cascade_mask_rcnn": "scenes-cascade_mask_rcnn",
    "semantic_fpn": "scenes-segmentation",
    "upernet": "scenes-upernet",
}
"""The small recipe of every head."""
EPOCHS: Mapping[str, int] = {
    "retinanet": 3,
    "faster_rcnn": 3,
    "mask_rcnn": 2,
    "cascade_mask_rcnn": 1,
    "semantic_fpn": 4,
    "upernet": 4,
}
"""Less than half of the recipes': so that all rows take about as long as each other, and the tables hours, not days."""
DIGITS_EPOCHS = 4
"""Less than half of the recipe's: after ten epochs most networks err on one or two of the 360 images."""


def scene(model: str, head: str) -> dict[str, Any]:
    """What the scenes recipe of a head is given for a backbone.

    Example:
        >>> scene("acmix_san10", "retinanet")
        {'model': 'acmix_san10', 'epochs': 3}
    """
    return {"model": model, "epochs": EPOCHS[head]}
