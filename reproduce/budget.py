"""The small runs of the tables: recipes and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reproduce.settings import Setting

SCENES: Mapping[str, tuple[str, int]] = {
    "retinanet": ("scenes-retinanet", 3),
    "faster_rcnn": ("scenes-detection", 3),
    "mask_rcnn": ("scenes-instances", 2),
    "cascade_mask_rcnn": ("scenes-cascade_mask_rcnn", 1),
    "semantic_fpn": ("scenes-segmentation", 4),
    "upernet": ("scenes-upernet", 4),
}
"""The small recipe of every head, and its epochs: less than half of the recipe's, so that all rows take about as long
as each other, and the tables hours, not days."""
DIGITS_EPOCHS = 4
"""Less than half of the recipe's: after ten epochs most networks err on one or two of the 360 images."""

CLIPART_EPOCHS = 10
WINDOW: Mapping[str, Any] = {"model_args.operator_args.attention_kernel_size": 7}
"""ACmix's windows in a ResNet, as the paper's supplement has them (part C), with four heads. The recipe for digits has
5×5 windows, which make a faster demo; the tables compare 7×7."""


def digits(model: str, options: Mapping[str, Any] | None = None, epochs: int = DIGITS_EPOCHS) -> Setting:
    """A network on scikit-learn's digits.

    Example:
        >>> digits("san10").overrides
        {'model': 'san10', 'epochs': 4}
    """
    return Setting("digits", {"model": model, **(options or {}), "epochs": epochs})


def on_clipart(setting: Setting) -> Setting:
    """The run of the digits on the clip art: the same network, longer.

    Example:
        >>> on_clipart(digits("san10")).command()
        'convattn train --recipe reproduce/clipart.yaml --model san10 epochs=10'
    """
    return Setting("reproduce/clipart.yaml", {**setting.overrides, "epochs": CLIPART_EPOCHS})


def scene(head: str, model: str, options: Mapping[str, Any] | None = None) -> Setting:
    """A head on a backbone, on embedded scenes of digits.

    Example:
        >>> scene("retinanet", "acmix_san10").overrides
        {'model': 'acmix_san10', 'epochs': 3}
    """
    recipe, epochs = SCENES[head]
    return Setting(recipe, {"model": model, **(options or {}), "epochs": epochs})
