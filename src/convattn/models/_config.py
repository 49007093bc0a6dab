"""What the networks here share with timm's registry: their entries, their functions, the choices of a stem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from timm.models import register_model
from torch import nn

Stem: TypeAlias = Literal["imagenet", "small"]


def check_stem(stem: str) -> None:
    """Check that a network has this stem.

    Raises:
        ValueError: an unknown one.
    """
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")


def imagenet_cfg(first_conv: str, classifier: str, *, crop_pct: float = 0.875) -> dict[str, Any]:
    """The entry of a network for ImageNet-1k at 224x224, without weights.

    Args:
        first_conv: name of the layer that reads the image.
        classifier: name of the last layer.
        crop_pct: side of the evaluation crop over that of the resized image, as in the host's paper.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }


def registered(build: Callable[[str, bool, dict[str, Any]], nn.Module], name: str, what: str) -> Callable[..., Any]:
    """Register a network with timm; returns the function that makes it, as every model of timm has one.

    Args:
        build: makes the network, from its name, ``pretrained`` and the other options.
        name: in timm's registry. ``build``'s module has it in its ``default_cfgs``.
        what: the function's docstring.
    """

    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        return build(name, pretrained, options)

    make.__name__ = make.__qualname__ = name
    make.__module__, make.__doc__ = build.__module__, what
    return register_model(make)
