"""Rows that are trained: on the paper's data set by its recipe, and small, all at one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from convattn.tasks.recipes import load_recipe, parse_overrides
from reproduce.budget import on_clipart
from reproduce.clipart import PACKAGE
from reproduce.entries import Part, Quantity, Reader, Row, Scale
from reproduce.settings import PRETRAINED, Setting

QUANTITIES: dict[str, Quantity] = {
    "top1": Quantity("top-1", "%", "accuracy"),
    "top5": Quantity("top-5", "%", "top5"),
    "mean_iou": Quantity("mIoU", "%", "mean_iou"),
} | {
    f"{kind}_{name}": Quantity(f"{kind} {name}", "%", f"{kind}_{name}")
    for kind in ("box", "mask")
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
}
"""By the names of the recipes' published figures."""

SMALL: dict[Scale, tuple[str, str]] = {
    "digits": ("Other images, a smaller network", "5 s to 3 min a run on one core"),
    "clipart": ("Other images, a smaller network", "1 to 3 min a run on one core"),
    "scenes": ("Scenes of 128 pixels, a smaller network from random weights", "2 to 11 min a run on one core"),
}
"""What is small at these scales, and how long a run takes."""
SMALL_WHY = (
    "{}, minutes of training: the numbers themselves cannot agree. What can be compared are the "
    "gains over the baseline, and their order."
)
NO_LARGE = " No object on them is larger than 96² pixels: they have no APl."
XVOLUTION_RUNS = 5
"""Its section 4.1: "averaged over five independent runs". ACmix does not say how many its figures are of."""
FULL_WHY = (
    "Another machine, other random numbers; where the paper leaves a setting open the recipe says what was chosen."
)


@dataclass(frozen=True)
class TrainedRow:
    """One row at two sizes: the paper's and a small one.

    Args:
        label: for people.
        recipe: by which the paper's own row is trained; "" where there is none.
        key: of its published figures in the recipe: the model, then settings.
        small: the same row small; None where there is none.
        group: rows of one group share a baseline.
        baseline: whether the others of its group are compared with this one.
        published: in place of the recipe's, by names of :data:`QUANTITIES`.
        x: its place on a chart's axis.
    """

    label: str
    recipe: str
    key: str
    small: Setting | None = None
    group: str = ""
    baseline: bool = False
    published: Mapping[str, str] | None = None
    x: float | None = None

    def row(self, setting: Setting) -> Row:
        """The row by a setting, with what the paper gives by the quantities' names."""
        found = self.published
        if found is None:
            found = published_figures(self.recipe).get(self.key, {}) if self.recipe else {}
        figures = {QUANTITIES[name].name: text for name, text in found.items()}
        return Row(self.label, figures, self.group, self.baseline, setting=setting, x=self.x)


@cache
def published_figures(recipe: str) -> dict[str, dict[str, str]]:
    """What a recipe knows of the papers' figures, by its keys, as text.

    Example:
        >>> published_figures("imagenet-swin")["acmix_swin_tiny"]
        {'top1': '81.9'}
    """
    found = load_recipe(recipe).published
    return {
        key: {name: str(value) for name, value in (given.items() if isinstance(given, dict) else [("top1", given)])}
        for key, given in found.items()
    }


def full_setting(recipe: str, key: str) -> Setting:
    """The run that a key of a recipe's published figures means.

    Example:
        >>> full_setting("imagenet-xvolution", "xvolution_resnet34 model_args.stages=[2]").overrides
        {'model': 'xvolution_resnet34', 'model_args.stages': [2]}
    """
    model, *settings = key.split(" ")
    return Setting(recipe, {"model": model, **parse_overrides(settings)})


def quantities(*names: str) -> tuple[Quantity, ...]:
    """By the recipes' names."""
    return tuple(QUANTITIES[name] for name in names)


def full_part(
    trained: Sequence[TrainedRow], columns: tuple[Quantity, ...], read: Reader = "figures", **options: Any
) -> Part:
    """The rows on the paper's own data set."""
    rows = tuple(row.row(full_setting(row.recipe, row.key)) for row in trained if row.recipe)
    dense = any(row.recipe.startswith(PRETRAINED) for row in trained)
    weights = "the backbone's weights on ImageNet, " if dense else ""
    runs = XVOLUTION_RUNS if "xvolution" in trained[0].recipe else 1
    means = f"; {runs} runs, seed=0 to seed={runs - 1}, whose mean the paper gives" if runs > 1 else ""
    need = f"the data set, {weights}8 GPUs{means}"
    return Part("full", columns, rows, "days", need, FULL_WHY, read, runs=runs, **options)


def small_part(
    scale: Scale, trained: Sequence[TrainedRow], columns: tuple[Quantity, ...], read: Reader = "figures", **options: Any
) -> Part:
    """The rows as small runs; on the clip art those of the digits."""
    placed = on_clipart if scale == "clipart" else lambda setting: setting
    rows = tuple(row.row(placed(row.small)) for row in trained if row.small is not None)
    asks_for_large = any(quantity.name.endswith("APl") for quantity in columns)
    images, time = SMALL[scale]
    why = SMALL_WHY.format(images) + (NO_LARGE if scale == "scenes" and asks_for_large else "")
    need = f"Debian's package {PACKAGE}" if scale == "clipart" else "nothing"
    return Part(scale, columns, rows, time, need, why, read, **options)
