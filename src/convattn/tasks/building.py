"""The network that a recipe names, checked against the images that it will see."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import timm
import torch
from timm.optim import list_optimizers
from torch import nn

import convattn.models  # noqa: F401  registers the models with timm
from convattn.convert import Budget, ConvertReport, convert
from convattn.data.transforms import crop_fraction
from convattn.errors import UserError, did_you_mean
from convattn.tasks.config import Recipe
from convattn.tasks.hub import unreachable
from convattn.tasks.pretrained import whole_weights
from convattn.tasks.recipes import nearest

REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What timm and torch raise on a network's options that do not fit, or cannot be fetched."""


@contextmanager
def refused(what: str, remedy: str = "") -> Iterator[None]:
    """Say what was to be done, why timm or torch refuses it, and the remedy.

    Example:
        >>> with refused("model resnet18 with model_args {'depth': 3}"):
        ...     timm.create_model("resnet18", depth=3)
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: model resnet18 with model_args {'depth': 3}: ... unexpected keyword argument 'depth'
    """
    try:
        yield
    except REFUSALS as error:
        raise UserError(f"{what}: {reason_of(error)}{remedy}") from error


def build_model(recipe: Recipe, classes: int) -> nn.Module:
    """Return the recipe's network for that many classes, freshly made on the current default device.

    Raises:
        UserError: for an unknown model or arguments that it does not take.

    Example:
        >>> build_model(Recipe(model="resnet10t"), classes=3).num_classes
        3
    """
    check_backbone(recipe)
    arguments = {**recipe.model_args, "num_classes": classes}
    with refused(f"model {recipe.model} with model_args {recipe.model_args}"), whole_weights(recipe):
        return timm.create_model(recipe.model, pretrained=recipe.pretrained, **arguments)


def converted(
    network: nn.Module,
    recipe: Recipe,
    example: torch.Tensor | None = None,
    report: Callable[[ConvertReport], object] | None = None,
    budget: Budget | None = None,
) -> nn.Module:
    """Return the recipe's ``model`` with operators in place of its convolutions, as the recipe's ``convert`` says.

    ``report`` is called with what was done, its multiply-adds counted on ``example``, which the ``budget`` is measured
    on.

    Raises:
        UserError: where ``where`` names no convolution, or none can be replaced.

    Example:
        >>> from convattn.tasks.config import ConvertConfig
        >>> recipe = Recipe(model="test_resnet", convert=ConvertConfig("xvolution", where=4))
        >>> type(converted(build_model(recipe, classes=3), recipe).layer4[0].conv1).__name__
        'XVolution'
    """
    wanted = recipe.convert
    if wanted.to is None:
        return network
    try:
        options = {"where": wanted.where, "operator_args": wanted.operator_args, "example": example}
        return convert(network, wanted.to, **options, report=report, budget=budget)
    except REFUSALS as error:
        lines = "; ".join(filter(None, str(error).splitlines())).replace(":;", ":")
        raise UserError(f"convert: {recipe.model} to {wanted.to}: {lines or type(error).__name__}") from error


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, with its type where that says more, or why nothing is fetched.

    Example:
        >>> reason_of(KeyError("depth")), reason_of(ValueError("no depth\\nat all"))
        ("KeyError: 'depth'", 'no depth')
    """
    if why := unreachable(error):
        return why
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return line if line and not isinstance(error, LookupError) else f"{type(error).__name__}: {line}".rstrip(": ")


def check_backbone(recipe: Recipe) -> None:
    """Raise for a network that timm's registry does not have."""
    if ":" not in recipe.model and not timm.is_model(recipe.model):
        hint = did_you_mean(recipe.model, timm.list_models())
        raise UserError(f"no model {recipe.model!r}: {hint}convattn list shows them all")


def with_statistics(recipe: Recipe, theirs: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the mean, deviation and crop of its inputs, where it has none, from timm's settings."""
    data = dataclasses.replace(
        recipe.data, mean=recipe.data.mean or tuple(theirs["mean"]), std=recipe.data.std or tuple(theirs["std"])
    )
    if data.crop_pct is None and "crop_pct" in theirs:
        data = dataclasses.replace(data, crop_pct=crop_fraction(*data.height_and_width, theirs["crop_pct"]))
    return dataclasses.replace(recipe, data=data)


def network_settings(recipe: Recipe, head: str) -> str:
    """Return what makes a recipe's network of a head on a backbone, for messages."""
    options = f"network.args {recipe.network.args} and model_args {recipe.model_args}"
    return f"{head} on {recipe.model} with {options}"


def network_name(recipe: Recipe) -> str:
    """Return what a person knows a recipe's network by.

    Example:
        >>> network_name(Recipe(model="resnet10t"))
        'resnet10t'
    """
    name = recipe.model if recipe.convert.to is None else f"{recipe.model} converted to {recipe.convert.to}"
    return name if recipe.network.head is None else f"{recipe.network.head} on {name}"


def check_image(recipe: Recipe, model: nn.Module, example: Any) -> Any:
    """Return what the network answers on an image of the recipe's size; raise where it cannot take one."""
    (height, width), was_training = recipe.data.height_and_width, model.training
    try:
        with torch.no_grad():
            return model.eval()(example)
    except REFUSALS as error:
        raise UserError(
            f"{network_name(recipe)} cannot take images of {height}x{width} ({reason_of(error)}): set data.image_size"
            " to what it takes, or give the network's own argument, such as model_args.img_size"
        ) from error
    finally:
        model.train(was_training)


def in_layout(recipe: Recipe, images: torch.Tensor) -> torch.Tensor:
    """Return images in the memory format of the recipe."""
    if recipe.memory_format == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def device_of(model: nn.Module) -> torch.device:
    """Return where a network's parameters are; one without any is on the CPU."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


NOT_FINITE = "the model's output is not finite"


def diverged() -> FloatingPointError:
    """Return the error of a network whose output is not finite."""
    return FloatingPointError(f"{NOT_FINITE}, its training diverged; train again with a lower learning rate")


def check_names(recipe: Recipe) -> None:
    """Raise for an optimizer that timm does not have, and a logger whose package is not installed."""
    for name in recipe.trainer.loggers:
        if name in ("wandb", "mlflow") and find_spec(name) is None:
            raise UserError(f'trainer.loggers: {name} is not installed: pip install "convattn[loggers]"')
    if recipe.optimizer.name not in list_optimizers():
        close = nearest(recipe.optimizer.name, list_optimizers(), "optimizers")
        raise UserError(f"optimizer.name: no optimizer {recipe.optimizer.name!r}: {close}")
