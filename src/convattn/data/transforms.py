"""From a PIL image to the tensor that a network reads: the one place where either transform is built."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from PIL import Image
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from timm.data import create_transform

from convattn.data.fields import SETTINGS, Number, Part, Text, between, wanted

Transform = Callable[[Image.Image], torch.Tensor]

AUTO_AUGMENT = (
    r"rand(-(m\d{1,2}|n[1-9]\d?|p(0?\.\d+|[01](\.0*)?)|mstd\d+(\.\d+)?|mmax[1-9]\d?|inc[01]|t(weights|3aw?)))*"
    r"|augmix(-(m\d{1,2}|[wd][1-9]\d?|a([1-9]\d?|\d?\.\d*[1-9]\d*)|b[01]|mstd\d+(\.\d+)?))*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)
"""What ``timm.data.auto_augment`` reads; it passes over a part that it does not know."""

SMALL_IMAGE = 64
CROP_FRACTION = 0.875


def crop_fraction(height: int, width: int, large: float = CROP_FRACTION) -> float:
    """Return the side of the evaluation crop over that of the resized image, for networks that are told none.

    Args:
        height: Of the network's images.
        width: Of the network's images.
        large: For images above 64 px; 0.875 is that of the ResNet papers. Smaller images are kept whole.

    Example:
        >>> crop_fraction(32, 32, 0.9), crop_fraction(224, 224, 0.9), crop_fraction(224, 224)
        (1.0, 0.9, 0.875)
    """
    return 1.0 if max(height, width) <= SMALL_IMAGE else large


def eval_transform(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float | None = None,
) -> Transform:
    """Return the transform for evaluation: resize the shorter side, crop the centre, normalise.

    Args:
        input_size: (channels, height, width).
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        interpolation: How images are resized.
        crop_pct: Side of the crop over that of the resized image; None: that of :func:`crop_fraction`.

    Example:
        >>> transform = eval_transform((3, 224, 224), (0.5,) * 3, (0.5,) * 3)
        >>> transform(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """
    channels, height, width = input_size
    return create_transform(
        (channels, height, width),
        is_training=False,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation,
        crop_pct=crop_fraction(height, width) if crop_pct is None else crop_pct,
    )


def _known_policy(name: str) -> str:
    if not re.fullmatch(AUTO_AUGMENT, name):
        raise wanted("a text such as rand-m9-mstd0.5-inc1")
    return name


@dataclass(frozen=True, config=SETTINGS)
class Augmentation:
    """The random part of a training image's transform, in timm's terms."""

    crop_scale: tuple[Part, Part] = (0.08, 1.0)
    crop_ratio: tuple[Annotated[Number, between(0, 100)], Annotated[Number, between(0, 100)]] = (3 / 4, 4 / 3)
    horizontal_flip: Part = 0.5
    vertical_flip: Part = 0.0
    color_jitter: Annotated[Number, between(0, 10)] = 0.0
    auto_augment: Annotated[Text, AfterValidator(_known_policy)] | None = None
    random_erasing: Part = 0.0


def train_transform(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    augmentation: Augmentation | None = None,
) -> Transform:
    """Return the random transform for training.

    It draws from the global generators of ``random``, numpy and torch, so seeding those fixes the result.

    Example:
        >>> transform = train_transform((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
        >>> transform(Image.new("RGB", (8, 8))).shape
        torch.Size([3, 32, 32])
    """
    augmentation = augmentation or Augmentation()
    channels, height, width = input_size
    return create_transform(
        (channels, height, width),
        is_training=True,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.horizontal_flip,
        vflip=augmentation.vertical_flip,
        color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]  # timm takes None
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.random_erasing,
        re_mode="pixel",
    )
