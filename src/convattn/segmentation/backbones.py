"""The feature maps of any of timm's backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

import convattn.models  # noqa: F401  registers the networks of this library by their names

MAX_LEVELS = 4


@dataclass(frozen=True)
class FeatureLevels:
    """Which maps of a backbone a decoder takes, finest first: its last four, or all where it has fewer.

    Args:
        channels: of each map.
        reductions: how many pixels of the image one pixel of each map covers, per side.
        channels_last: whether the backbone gives ``[B, H, W, C]``.
        divisor: what height and width of the image must be multiples of, for the backbone to take it.

    Example:
        >>> network = timm.create_model("resnet10t", features_only=True)
        >>> FeatureLevels.of(network)
        FeatureLevels(channels=(64, 128, 256, 512), reductions=(4, 8, 16, 32), channels_last=False, divisor=(1, 1))
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    channels_last: bool = False
    divisor: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, network: nn.Module) -> FeatureLevels:
        """What a network made with ``features_only=True`` says of its maps.

        Raises:
            TypeError: a network that publishes no feature maps.
            ValueError: maps that do not go from fine to coarse.
        """
        info: Any = getattr(network, "feature_info", None)
        if not callable(getattr(info, "channels", None)) or not callable(getattr(info, "reduction", None)):
            raise TypeError(
                f"the backbone must give its feature maps, got {type(network).__name__}: make it with "
                "timm.create_model(name, features_only=True), or give its name"
            )
        channels, reductions = tuple(info.channels()), tuple(info.reduction())
        if not reductions or list(reductions) != sorted(reductions):
            raise ValueError(
                f"the backbone's maps must go from fine to coarse, got the reductions {reductions}: choose others with "
                "timm.create_model(name, features_only=True, out_indices=...)"
            )
        layout = getattr(network, "output_fmt", "NCHW")
        layout = str(getattr(layout, "value", layout))
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"the backbone must give maps as NCHW or NHWC, got {layout}: give it output_fmt='NCHW'")
        return cls(channels[-MAX_LEVELS:], reductions[-MAX_LEVELS:], layout == "NHWC", _divisor(network))

    def select(self, maps: Sequence[Tensor] | Mapping[Any, Tensor]) -> list[Tensor]:
        """The decoder's maps, each ``[B, C, H, W]``, among all that the backbone gave."""
        given = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
        chosen = given[-len(self.channels) :]
        chosen = [level.permute(0, 3, 1, 2) for level in chosen] if self.channels_last else chosen
        # sums of maps in different memory layouts leave conditions on the sizes that an export cannot prove
        return [level.contiguous() for level in chosen] if torch.compiler.is_exporting() else chosen


def _divisor(network: nn.Module) -> tuple[int, int]:
    """The patches of timm's vision transformers must fill the image."""
    patches = [
        part.patch_size
        for part in network.modules()
        if isinstance(part, PatchEmbed) and type(part).forward is PatchEmbed.forward and not part.dynamic_img_pad
    ]
    rows, columns = zip(*patches, strict=True) if patches else ((1,), (1,))
    return lcm(*rows), lcm(*columns)


def build_backbone(backbone: nn.Module | str) -> nn.Module:
    """The backbone itself, or the one of that name in timm's registry, from scratch and with its default options.

    Raises:
        ValueError: a name that timm's registry does not have.
        TypeError: neither a module nor a name.
    """
    if isinstance(backbone, nn.Module):
        return backbone
    if not isinstance(backbone, str):
        raise TypeError(f"backbone must be a network or a name in timm's registry, got {type(backbone).__name__}")
    if not timm.is_model(backbone):
        raise ValueError(f"no network is called {backbone!r}: timm.list_models('*{backbone[:6]}*') lists similar names")
    return timm.create_model(backbone, features_only=True)
