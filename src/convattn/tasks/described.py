"""What weights say of themselves: read with every field checked, and the model built that they are of."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from convattn.data.names import short
from convattn.errors import UserError
from convattn.tasks.building import refused
from convattn.tasks.config import ConvertConfig, DataConfig, EvaluationConfig, NetworkConfig, Recipe
from convattn.tasks.plain import check_plain, read_json
from convattn.tasks.reach import reaching
from convattn.tasks.recipes import build
from convattn.tasks.task import InputSize, build_network, task_of

NAMED = ("model", "interpolation", "convattn_version", "task")
"""What weights say of themselves as it is."""

SECTIONS: dict[str, type] = {"network": NetworkConfig, "evaluation": EvaluationConfig, "convert": ConvertConfig}
"""The sections of a recipe that they say as JSON."""

WRITTEN = (
    *("model_args", "classes", "input_size", "mean", "std", "category_ids", "min_score", "crop_pct"),
    *SECTIONS,
)
"""All that they say as JSON."""

UNSAID = {
    "task": "classification",
    **dict.fromkeys(SECTIONS, "{}"),
    **dict.fromkeys(("crop_pct", "category_ids", "min_score"), "null"),
    "convattn_version": "unknown",
}
"""What weights mean that do not say it."""

LARGEST_SIDE = 16384
"""Pixels of the largest images that weights may ask for."""


@dataclass(frozen=True)
class Description:
    """What a weights file says of itself.

    ``recipe`` is that of a network like the described one. ``category_ids`` are the classes' ids in the annotations
    that a detector was trained on, and from ``min_score`` on its detections balanced hits and errors best on the
    validation images; None where nothing hit.
    """

    recipe: Recipe
    classes: list[str]
    version: str
    category_ids: list[int]
    min_score: float | None

    @classmethod
    def parse(cls, fields: Mapping[str, str], source: Path) -> "Description":
        """Return the description that the fields hold, each of them checked."""
        if fields.get("format") != "convattn":
            raise UserError(
                f"{source}: holds weights, but not what model they belong to; "
                "only files that convattn train wrote can be loaded"
            )
        where = f"{source}: its description is incomplete or damaged"
        texts = {**UNSAID, **fields}
        values: dict[str, Any] = {}
        for name in NAMED + WRITTEN:
            text = texts.get(name)
            if not isinstance(text, str):
                raise UserError(f"{where}: {name} is {'missing' if text is None else repr(text)}; train again")
            values[name] = read_json(text, f"{where}: {name}") if name in WRITTEN else text
            check_plain(text, f"{where}: {name}")
        _check_values(values, where)
        options = {name: values[name] for name in ("mean", "std", "interpolation", "crop_pct")}
        sections = {"data": build(DataConfig, options | {"image_size": values["input_size"][1:]}, where)}
        settings = {name: values[name] for name in ("model", "task", "model_args")}
        recipe = build(Recipe, settings, where)
        sections |= {name: build(kind, values[name], where, f"{name}.") for name, kind in SECTIONS.items()}
        return cls(
            recipe=replace(recipe, **sections),
            classes=values["classes"],
            version=values["convattn_version"],
            category_ids=values["category_ids"] or list(range(1, len(values["classes"]) + 1)),
            min_score=values["min_score"],
        )

    @property
    def input_size(self) -> InputSize:
        """The size of the images as the network sees them."""
        return (3, *self.recipe.data.height_and_width)

    def reaching(self) -> Iterator[tuple[str, Any]]:
        """Yield what of the model would open other files or the network."""
        options = {"model_args": self.recipe.model_args, "network.args": self.recipe.network.args}
        return reaching(self.recipe.model, options)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return what makes a tensor of an image."""
        return task_of(self.recipe).transform(self.recipe, self.input_size)

    def build(self, source: Path) -> nn.Module:
        """Build the network that is described, with fresh weights."""
        what = f"{source}: its model {self.recipe.model!r} (written by convattn {self.version}) cannot be built here"
        with refused(what, "; install that version of convattn and its timm, or see: convattn list"):
            return build_network(self.recipe, len(self.classes))


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise for classes, sizes and statistics that no training writes; the rest is checked as a recipe's settings."""
    classes, size, ids, least = (values[name] for name in ("classes", "input_size", "category_ids", "min_score"))
    names = classes if isinstance(classes, list) else []
    sides = size if isinstance(size, list) and all(type(side) is int for side in size) else []
    numbers = ids if isinstance(ids, list) and all(type(id) is int for id in ids) else []
    forms = {
        "classes": ("names, one or more", bool(names) and all(isinstance(name, str) for name in names)),
        "input_size": (
            f"3 channels, height and width, of at most {LARGEST_SIDE} pixels",
            len(sides) == 3 and sides[0] == 3 and min(sides) >= 1 and max(sides) <= LARGEST_SIDE,
        ),
        "mean": ("a list of 3 numbers", _are_finite(values["mean"])),
        "std": ("a list of 3 numbers", _are_finite(values["std"])),
        "category_ids": (
            "a whole number for each class",
            ids is None or len({*numbers}) == len(numbers) == len(names),
        ),
        "min_score": ("a number from 0 to 1", least is None or (type(least) in (int, float) and 0 <= least <= 1)),
    }
    for name, (form, is_right) in forms.items():
        if not is_right:
            raise UserError(f"{where}: {name} must be {form}, got {short(values[name])}; train again")
    if not all(one > 0 for one in values["std"]):
        raise UserError(f"{where}: std must be above 0, got {short(values['std'])}; train again")


def _are_finite(values: Any) -> bool:
    return isinstance(values, list) and all(type(one) in (int, float) and isfinite(one) for one in values)
