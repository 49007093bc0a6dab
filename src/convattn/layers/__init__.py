"""Operators that stand where a convolution stood."""

from convattn.layers.acmix import ACmix, LocalAttention2d, MixKind, PathMix
from convattn.layers.attention import LinearPosition, LocalAttention, PositionKind, TablePosition
from convattn.layers.convolution import ShiftConv2d, ShiftConvolution, ShiftKind

__all__ = [
    "ACmix",
    "LinearPosition",
    "LocalAttention",
    "LocalAttention2d",
    "MixKind",
    "PathMix",
    "PositionKind",
    "ShiftConv2d",
    "ShiftConvolution",
    "ShiftKind",
    "TablePosition",
]
