"""The weights that training starts from: random, timm's pretrained ones, or those of an earlier run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from convattn.errors import UserError, user_path
from convattn.tasks.building import converted
from convattn.tasks.config import ConvertConfig, Recipe
from convattn.tasks.described import Description
from convattn.tasks.inference import EXPORTED, find_weights, load_weights, read_weights
from convattn.tasks.reach import FROM_WHERE, OPENS, OVERLAY, weights_file
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
    recipe = fields.recipe
    settings = {key: getattr(recipe, key) for key in ("model", "task", "model_args")}
    settings |= {key: to_mapping(getattr(recipe, key)) for key in ("network", "convert")}
    brought = ("image_size", "mean", "std", *(() if recipe.data.crop_pct is None else ("crop_pct",)))
    return settings | {f"data.{key}": getattr(recipe.data, key) for key in brought}


TRAINING_ONLY = ("num_classes", "features_only", "out_indices", "img_size", "strict_img_size", "dynamic_img_size")
"""The options of a network, beside rates of dropping, that leave its weights and what they compute as they are."""

OF_OPERATORS = ("operator_args", "stages")
"""Those of the operators alone: a network with operators may start from one with convolutions."""


def start(recipe: Recipe, classes: int) -> nn.Module:
    """Return the network that training by a recipe starts with.

    Where the recipe names ``weights``, they must be those of its network, converted as it is or not converted yet. What
    depends on the classes starts anew where there are others. ``backbone_weights`` are those of a classifier that is
    the recipe's backbone: the same network with the same options.

    Raises:
        UserError: the network cannot be made, or the weights are of another one.
    """
    if recipe.backbone_weights is not None:
        return _with_backbone_weights(recipe, classes)
    if recipe.weights is None:
        file = weights_file(recipe.model_args) if recipe.pretrained else None
        if file is not None and recipe.weights_match == "exact":
            _check_described(Path(file), recipe)
        return build_network(recipe, classes)
    source, fields, weights = _read(recipe.weights, trust=True)  # the recipe was refused before
    theirs = fields.recipe
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
    load_weights(model, weights, fields.recipe.model, source)
    if theirs.convert == recipe.convert:
        return model
    return task_of(recipe).with_backbone(model, lambda backbone: converted(backbone, recipe))


def network_options(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make a network's function; those for training and for fetching weights are left out.

    Example:
        >>> network_options({"stride_place": "projection", "drop_path_rate": 0.1, "img_size": 64})
        {'stride_place': 'projection'}
    """
    skipped = (*TRAINING_ONLY, *OPENS)
    return {
        name: value
        for name, value in model_args.items()
        if name not in skipped and not name.startswith(FROM_WHERE) and "drop" not in name
    }


def _with_backbone_weights(recipe: Recipe, classes: int) -> nn.Module:
    source, fields, _ = _read(str(recipe.backbone_weights), trust=True)
    theirs = fields.recipe
    if source.suffix != ".safetensors":
        raise UserError(
            f"backbone_weights: {source} is of a run that has not ended: go on with it, or give its weights"
        )
    if theirs.task != "classification" or theirs.convert.to is not None:
        what = f"for {theirs.task}" if theirs.task != "classification" else f"converted to {theirs.convert.to}"
        raise UserError(f"backbone_weights: {source} is {what}: give the weights of a classifier as timm makes it")
    overlay = {"file": str(source), "num_classes": len(fields.classes)}
    started = replace(recipe, pretrained=True, model_args={**recipe.model_args, OVERLAY: overlay})
    fault = "" if recipe.weights_match == "partial" else _difference(theirs, recipe)
    if theirs.model != recipe.model and recipe.weights_match == "exact":
        fault = f"the weights are of {theirs.model}, the recipe has {recipe.model}: give those of {recipe.model}"
    try:
        model = build_network(started, classes)
    except UserError as error:
        raise UserError(f"backbone_weights: {source}: {fault or 'it does not fit'} ({error})") from error
    if fault:
        raise UserError(f"backbone_weights: {source}: {fault}")
    return model


def _check_described(file: Path, recipe: Recipe) -> None:
    """Raise where a file of pretrained weights says that it is of the network with other options."""
    if file.suffix != ".safetensors" or not file.is_file():
        return
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"model_args.{OVERLAY}: {file}: no safetensors file, or damaged ({error}); fetch or train it again"
        ) from error
    if said.get("format") == "convattn" and (fault := _difference(Description.parse(said, file).recipe, recipe)):
        raise UserError(f"model_args.{OVERLAY}: {file}: {fault}")


def _difference(theirs: Recipe, recipe: Recipe) -> str:
    """Return in which options the network of weights is another one than the recipe's, and what to do about it."""
    left = () if theirs.model == recipe.model else OF_OPERATORS
    given, wanted = (network_options(one.model_args) for one in (theirs, recipe))
    for name in sorted({*given, *wanted} - {*left}):
        if given.get(name) != wanted.get(name):
            has, lacks = (f"{options[name]!r}" if name in options else "not set" for options in (given, wanted))
            asked = f"model_args.{name}={wanted[name]}" if name in wanted else f"without model_args.{name}"
            return (
                f"the weights are of {theirs.model} with model_args.{name} {has}, the recipe has {lacks}, which makes"
                f" another network of them: train {recipe.model} {asked}, or take the weights' own setting here"
            )
    return ""


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
