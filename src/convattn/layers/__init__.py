"""Operators that stand where a convolution stood, and the paths that they are made of."""

from convattn.layers.acmix import ACmix, LocalAttention2d, MixKind, PathMix
from convattn.layers.attention import LinearPosition, LocalAttention, PositionKind, TablePosition
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.bottleneck import BottleneckAttention2d, TimmOperator2d
from convattn.layers.convolution import ShiftConv2d, ShiftConvolution, ShiftKind
from convattn.layers.global_attention import GlobalAttention, SpatialReductionACmix, SpatialReductionAttention
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import Composability, LocalRelation2d
from convattn.layers.patchwise import PatchwiseAttention, PatchwiseAttention2d
from convattn.layers.pssa import PSSA
from convattn.layers.self_attention import GlobalAttention2d
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from convattn.layers.xvolution import MultiConvolution, XVolution

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
