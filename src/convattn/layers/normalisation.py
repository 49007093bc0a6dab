"""Norms that the heads of detectors and segmenters share."""

from __future__ import annotations

from math import gcd

from torch import nn

GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation over 32 groups, or the most that divide both 32 and the channels.

    Example:
        >>> group_norm(64).num_groups, group_norm(48).num_groups
        (32, 16)
    """
    return nn.GroupNorm(gcd(GROUPS, channels), channels)
