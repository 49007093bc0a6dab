"""Operators that replace a convolution, and the paths that they consist of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convattn.layers.acmix import ACmix
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.global_attention import GlobalAttention, GlobalAttention2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_attention import (
    LinearPosition,
    LocalAttention,
    LocalAttention2d,
    PositionKind,
    TablePosition,
)
from convattn.layers.local_relation import Composability, LocalRelation2d
from convattn.layers.multi_convolution import MultiConvolution
from convattn.layers.pairwise import PairwiseAttention, PairwiseAttention2d
from convattn.layers.patchwise import PatchwiseAttention, PatchwiseAttention2d
from convattn.layers.path_mix import MixKind, PathMix
from convattn.layers.pssa import PSSA
from convattn.layers.shift_convolution import ShiftConv2d, ShiftConvolution, ShiftKind
from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from convattn.layers.xvolution import XVolution

if TYPE_CHECKING:
    from convattn.layers.timm_operators import BottleneckAttention2d, TimmOperator2d

__all__ = [
    "PSSA",
    "ACmix",
    "AugmentedConv2d",
    "BottleneckAttention2d",
    "Composability",
    "GlobalAttention",
    "GlobalAttention2d",
    "Involution2d",
    "LinearPosition",
    "LocalAttention",
    "LocalAttention2d",
    "LocalRelation2d",
    "MixKind",
    "MultiConvolution",
    "PairwiseAttention",
    "PairwiseAttention2d",
    "PatchwiseAttention",
    "PatchwiseAttention2d",
    "PathMix",
    "PositionKind",
    "ShiftConv2d",
    "ShiftConvolution",
    "ShiftKind",
    "SpatialReductionACmix",
    "SpatialReductionAttention",
    "TablePosition",
    "TimmOperator2d",
    "WindowAttention",
    "WindowAttention2d",
    "XVolution",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what is made of timm's layers at its first use: timm takes as long as torch."""
        if name not in ("BottleneckAttention2d", "TimmOperator2d"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from convattn.layers import timm_operators

        return getattr(timm_operators, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
