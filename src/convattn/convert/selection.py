"""Which convolutions of a network are meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from timm.models._features import FeatureGetterNet
from torch import nn

Choice: TypeAlias = "str | re.Pattern[str] | type[nn.Module] | int | Callable[[str, nn.Module], bool]"
Where: TypeAlias = "Choice | Sequence[Choice]"

Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def convolutions(model: nn.Module) -> Iterator[tuple[str, Convolution]]:
    """The convolutions that read a neighbourhood, by name, but for those inside this library's operators."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if any(kind.__module__.startswith("convattn.layers") for kind in type(module).__mro__):
            inside.append(f"{name}." if name else "")
        elif isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1:
            yield name, module


def select(model: nn.Module, where: Where | None) -> list[tuple[str, Convolution]]:
    """The convolutions that are meant; None: all.

    Args:
        model: the network.
        where: see :func:`convattn.convert`.

    Raises:
        ValueError: nothing is meant, or a stage that the network does not have.
        TypeError: something that is no choice.
    """
    found = list(convolutions(model))
    if where is None:
        return found
    choices = [where] if isinstance(where, (str, bytes)) or not isinstance(where, Sequence) else list(where)
    tests = [_test(model, choice) for choice in choices]
    for choice, test in zip(choices, tests, strict=True):
        if not any(test(name, module) for name, module in found):
            raise ValueError(_nothing_meant(choice, model, [name for name, _ in found]))
    return [(name, module) for name, module in found if any(test(name, module) for test in tests)]


def _test(model: nn.Module, choice: Any) -> Callable[[str, nn.Module], bool]:
    if isinstance(choice, str):
        return lambda name, module: any(is_meant(choice, one) for one in (name, whole_name(model, name)))
    if isinstance(choice, re.Pattern):
        return lambda name, module: choice.search(name) is not None
    if isinstance(choice, type) and issubclass(choice, nn.Module):
        within = _names_within(model, choice)
        return lambda name, module: name in within
    if isinstance(choice, int) and not isinstance(choice, bool):
        stages = _stages(model)
        if choice not in stages:
            raise ValueError(f"the network has the stages {sorted(stages)}, got {choice}")
        prefixes = stages[choice]
        return lambda name, module: any(name == p or name.startswith(f"{p}.") for p in prefixes)
    if callable(choice) and not isinstance(choice, type):
        return lambda name, module: bool(choice(name, module))
    raise TypeError(
        "where takes a name, a glob, a compiled regular expression, a module class, the number of a stage, a function "
        f"of (name, module), or a list of these; got {choice!r}"
    )


def is_meant(choice: str, name: str) -> bool:
    """Whether a name, or a glob of names, means a module or a parameter: it, or what it is inside of."""
    return name == choice or name.startswith(f"{choice}.") or fnmatchcase(name, choice)


def whole_name(model: nn.Module, name: str) -> str:
    """The name in timm's whole network of a module of one that was made with ``features_only=True``.

    Example:
        >>> import timm
        >>> whole_name(timm.create_model("test_convnext", features_only=True), "stages_1.blocks.0")
        'stages.1.blocks.0'
        >>> whole_name(timm.create_model("swin_tiny", features_only=True), "model.layers.0")
        'layers.0'
    """
    if isinstance(model, FeatureGetterNet):
        return name.removeprefix("model.")
    if isinstance(model, nn.ModuleDict) and hasattr(model, "feature_info"):
        return re.sub(r"^([a-z]+)_(\d+)(?=\.|$)", r"\1.\2", name)  # timm flattens sequences of stages
    return name


def _names_within(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    """The names of the modules of a class and of all that they hold."""
    return {
        ".".join(filter(None, (name, part)))
        for name, module in model.named_modules()
        if isinstance(module, kind)
        for part, _ in module.named_modules()
    }


def _stages(model: nn.Module) -> dict[int, list[str]]:
    """The modules of the stages of a timm network, by the papers' numbers: stage 1 ends at a quarter of the size.

    A stage is everything after the feature map before it up to its own, in the order of the modules.
    """
    features = getattr(model, "feature_info", None)
    features = getattr(features, "info", features)
    if not features or not all(isinstance(info, dict) and "module" in info for info in features):
        raise ValueError(
            f"{type(model).__name__} does not say where its stages are (timm's feature_info): name them, "
            f"where={[name for name, _ in model.named_children()]} for one"
        )
    ends = {int(info["reduction"]).bit_length() - 2: str(info["module"]) for info in features}
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    whole = [whole_name(model, name) for name in names]
    stages: dict[int, list[str]] = {}
    start = 0
    for stage, end in sorted(ends.items()):
        stop = max((i for i, name in enumerate(whole) if name == end or name.startswith(f"{end}.")), default=start - 1)
        stages[stage] = names[start : stop + 1]
        start = stop + 1
    return {stage: inside for stage, inside in stages.items() if stage >= 1 and inside}


def _nothing_meant(choice: Any, model: nn.Module, names: list[str]) -> str:
    if not names:
        return f"{type(model).__name__} has no convolution larger than 1x1"
    message = f"where={choice!r} means no convolution larger than 1x1 of {type(model).__name__}"
    if isinstance(choice, str):
        known = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(choice, [*names, *known], n=3, cutoff=0.5)
        return (
            f"{message}; {'near it: ' + ', '.join(dict.fromkeys(near)) if near else 'it has ' + ', '.join(names[:5])}"
        )
    return f"{message}; it has {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
