"""What weights say of themselves: read with every field checked, and the model built that they are of."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from convattn.errors import UserError
from convattn.tasks.building import REFUSALS, first_line
from convattn.tasks.config import ConvertConfig, DataConfig, EvaluationConfig, NetworkConfig, Recipe, TaskName
from convattn.tasks.plain import check_plain, read_json
from convattn.tasks.reach import reaching
from convattn.tasks.recipes import build
from convattn.tasks.task import build_network, task_of

NAMED = ("model", "interpolation", "convattn_version", "task")
"""What weights say of themselves as it is."""

WRITTEN = (
    *("model_args", "classes", "input_size", "mean", "std", "network", "evaluation"),
    *("category_ids", "min_score", "convert", "crop_pct"),
)
"""What they say of themselves as JSON."""

UNSAID = {
    "task": "classification",
    "network": "{}",
    "evaluation": "{}",
    "convert": "{}",
    "crop_pct": "null",
    "category_ids": "null",
    "min_score": "null",
    "convattn_version": "unknown",
}
"""What weights mean that do not say it."""

LARGEST_SIDE = 16384
"""Pixels of the largest images that weights may ask for."""


@dataclass(frozen=True)
class Description:
    """What a weights file says of itself.

    ``category_ids`` are the classes' ids in the annotations that a detector was trained on, and from ``min_score`` on
    its detections balanced hits and errors best on the validation images; None where nothing hit.
    """

    name: str
    model_args: dict[str, Any]
    classes: list[str]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float | None
    version: str
    task: TaskName
    network: NetworkConfig
    evaluation: EvaluationConfig
    convert: ConvertConfig
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
        data = build(DataConfig, options | {"image_size": values["input_size"][1:]}, where)
        recipe = build(Recipe, {name: values[name] for name in ("model", "task", "model_args")}, where)
        return cls(
            name=recipe.model,
            model_args=recipe.model_args,
            classes=values["classes"],
            input_size=(3, *values["input_size"][1:]),
            mean=data.mean or (),
            std=data.std or (),
            interpolation=data.interpolation,
            crop_pct=data.crop_pct,
            version=values["convattn_version"],
            task=recipe.task,
            network=build(NetworkConfig, values["network"], where, "network."),
            evaluation=build(EvaluationConfig, values["evaluation"], where, "evaluation."),
            convert=build(ConvertConfig, values["convert"], where, "convert."),
            category_ids=values["category_ids"] or list(range(1, len(values["classes"]) + 1)),
            min_score=values["min_score"],
        )

    def reaching(self) -> Iterator[tuple[str, Any]]:
        """Yield what of the model would open other files or the network."""
        return reaching(self.name, {"model_args": self.model_args, "network.args": self.network.args})

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return what makes a tensor of an image."""
        return task_of(self.recipe()).transform(self.recipe(), self.input_size)

    def recipe(self) -> Recipe:
        """Return the recipe of a network like the described one."""
        data = DataConfig(
            image_size=self.input_size[1:],
            mean=_three(self.mean),
            std=_three(self.std),
            interpolation=self.interpolation,  # type: ignore[arg-type]
            crop_pct=self.crop_pct,
        )
        return Recipe(
            self.name,
            task=self.task,
            network=self.network,
            model_args=self.model_args,
            evaluation=self.evaluation,
            convert=self.convert,
            data=data,
        )

    def build(self, source: Path) -> nn.Module:
        """Build the network that is described, with fresh weights."""
        try:
            return build_network(self.recipe(), len(self.classes))
        except REFUSALS as error:
            raise UserError(
                f"{source}: its model {self.name!r} (written by convattn {self.version}) cannot be built here: "
                f"{first_line(error)}; install that version of convattn and its timm, or see: convattn list"
            ) from error


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise for classes, sizes and statistics that no training writes; the rest is checked as a recipe's settings."""
    classes, size = values["classes"], values["input_size"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: classes must be names, one or more, got {_short(classes)}; train again")
    if not isinstance(size, list) or len(size) != 3 or not all(type(side) is int and side >= 1 for side in size):
        raise UserError(f"{where}: input_size must be [3, height, width], got {_short(size)}; train again")
    if size[0] != 3 or max(size) > LARGEST_SIDE:
        raise UserError(f"{where}: input_size must be 3 channels of at most {LARGEST_SIDE} pixels, got {_short(size)}")
    for name in ("mean", "std"):
        numbers = values[name]
        if not isinstance(numbers, list) or not all(type(one) in (int, float) and isfinite(one) for one in numbers):
            raise UserError(f"{where}: {name} must be a list of 3 numbers, got {_short(numbers)}; train again")
    if not all(one > 0 for one in values["std"]):
        raise UserError(f"{where}: std must be above 0, got {_short(values['std'])}; train again")
    ids, least = values["category_ids"], values["min_score"]
    if ids is not None and not (
        isinstance(ids, list) and all(type(id) is int for id in ids) and len({*ids}) == len(ids) == len(classes)
    ):
        raise UserError(f"{where}: category_ids must be a whole number for each class, got {_short(ids)}; train again")
    if least is not None and not (type(least) in (int, float) and 0 <= least <= 1):
        raise UserError(f"{where}: min_score must be a number from 0 to 1, got {_short(least)}; train again")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
