"""The weights that training starts from: random, timm's pretrained ones, or those of an earlier run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convattn.errors import UserError, user_path
from convattn.tasks.building import converted
from convattn.tasks.config import ConvertConfig, Recipe
from convattn.tasks.described import Description
from convattn.tasks.inference import EXPORTED, find_weights, load_weights, read_weights
from convattn.tasks.recipes import to_mapping
from convattn.tasks.task import build_network, task_of

SAME = ("task", "model", "model_args", "network")
"""The settings that make the network which weights are of."""


def settings_of(weights: str, *, trust: bool = False) -> dict[str, Any]:
    """Return the settings that weights bring with them: their network, its conversion, its images' size and statistics.

    Args:
        weights: A run folder, a weights file or a checkpoint.
        trust: As for :func:`~convattn.tasks.inference.load_model`.
    """
    _, fields, _ = _read(weights, trust=trust)
    recipe = fields.recipe()
    settings = {key: getattr(recipe, key) for key in ("model", "task", "model_args")}
    settings |= {key: to_mapping(getattr(recipe, key)) for key in ("network", "convert")}
    return settings | {f"data.{key}": getattr(recipe.data, key) for key in ("image_size", "mean", "std")}


def start(recipe: Recipe, classes: int) -> nn.Module:
    """Return the network that training by a recipe starts with.

    Where the recipe names ``weights``, they must be those of its network, converted as it is or not converted yet. What
    depends on the classes starts anew where there are others.

    Raises:
        UserError: the network cannot be made, or the weights are of another one.
    """
    if recipe.weights is None:
        return build_network(recipe, classes)
    source, fields, weights = _read(recipe.weights, trust=True)  # the recipe was refused before
    theirs = fields.recipe()
    for key in SAME:
        if getattr(theirs, key) != getattr(recipe, key):
            raise UserError(
                f"weights: {source} is of {key} {getattr(theirs, key)}, the recipe has {getattr(recipe, key)}: leave"
                f" {key} out, since the weights bring it, or take other weights"
            )
    if theirs.convert not in (recipe.convert, ConvertConfig()):
        raise UserError(f"weights: {source} is converted already ({theirs.convert}), otherwise than the recipe says")
    plain = replace(recipe, pretrained=False, convert=theirs.convert)
    model = build_network(plain, classes)
    if len(fields.classes) != classes:
        weights = _fitting(model, weights)
    load_weights(model, weights, fields.name, source)
    if theirs.convert == recipe.convert:
        return model
    return task_of(recipe).with_backbone(model, lambda backbone: converted(backbone, recipe))


def _read(weights: str, *, trust: bool) -> tuple[Path, Description, dict[str, Tensor]]:
    source = find_weights(user_path(weights))
    if source.suffix in EXPORTED:
        raise UserError(f"weights: {source} is an exported file; give the run folder that it was made of")
    _, fields, tensors = read_weights(source, trust=trust)
    return source, fields, tensors


def _fitting(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the model's own ones where the number of classes gives them another shape."""
    own = model.state_dict()
    return {name: own[name] if name in own and own[name].shape != one.shape else one for name, one in weights.items()}
