"""What SAN is built of: blocks around an operator, the pooling before them, and stages of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convattn.layers._drop_in import traced_as_one

REDUCTION = 4
"""Channels of a block over those of its operator."""


@register_notrace_module
class HalvingPool(nn.Module):
    """Max-pooling by two, an odd last row or column left out; an axis of one pixel stays.

    Example:
        >>> import torch
        >>> HalvingPool()(torch.zeros(1, 3, 5, 1)).shape
        torch.Size([1, 3, 2, 1])
    """

    @traced_as_one
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, max(H // 2, 1), max(W // 2, 1)]``."""
        return F.max_pool2d(x, (1 if x.shape[2] == 1 else 2, 1 if x.shape[3] == 1 else 2))


class Block(nn.Module):
    """Batch norm, ReLU, operator, batch norm, ReLU, 1x1 convolution, with a shortcut around all.

    Args:
        channels: P.
        operator: ``[B, P, H, W]`` -> ``[B, P/4, H, W]``.
        drop_path: rate of stochastic depth, in training.

    Example:
        >>> import torch
        >>> from convattn.layers import PatchwiseAttention2d
        >>> Block(32, PatchwiseAttention2d(32, 8), drop_path=0.1)(torch.randn(1, 32, 5, 5)).shape
        torch.Size([1, 32, 5, 5])
    """

    def __init__(self, channels: int, operator: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.attn = operator
        self.norm2 = nn.BatchNorm2d(channels // REDUCTION)
        self.act2 = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels // REDUCTION, channels, 1)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, P, H, W]`` -> ``[B, P, H, W]``."""
        out = self.attn(self.act1(self.norm1(x)))
        out = self.drop_path(self.conv(self.act2(self.norm2(out))))
        out += x
        return out


class Stage(nn.Module):
    """Pooling, a 1x1 convolution to another width, blocks, batch norm and ReLU.

    Args:
        in_channels: of the stage before.
        channels: P.
        blocks: of P channels.
        pool: halve the resolution first.
    """

    def __init__(self, in_channels: int, channels: int, blocks: Sequence[nn.Module], *, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.grad_checkpointing = False

    def steps(self) -> list[Callable[[Tensor], Tensor]]:
        """What a map goes through, one after the other."""
        blocks: list[Callable[[Tensor], Tensor]] = list(self.blocks)
        if self.grad_checkpointing and torch.is_grad_enabled():
            blocks = [partial(checkpoint, block, use_reentrant=False) for block in blocks]
        return [self.pool, self.conv, *blocks, self.norm, self.act]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, P, H // 2, W // 2]``, at least one pixel."""
        for step in self.steps():
            x = step(x)
        return x
