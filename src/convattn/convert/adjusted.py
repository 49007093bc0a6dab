"""What an ACmix lacks that a convolution had: an order of its outputs, and a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdjustedOperator(nn.Module):
    """An operator, its outputs put into the order that the network reads them in, and a bias added.

    The outputs of an ACmix that share a head channel are together; a bias before its convolution path would meet the
    zeros beyond the border, so it comes after.

    Args:
        operator: from ``[B, C_in, H, W]`` to ``[B, C, H', W']``.
        order: ``[C]``: which of the operator's outputs every output is; None: they stay.
        bias: ``[C]``, added last; None: nothing is.

    Example:
        >>> import torch
        >>> layer = AdjustedOperator(nn.Identity(), torch.tensor([1, 0]), torch.tensor([0.5, 0.0]))
        >>> layer(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)).flatten().tolist()
        [2.5, 1.0]
    """

    def __init__(self, operator: nn.Module, order: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.operator = operator
        self.order: Tensor | None
        self.register_buffer("order", order)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, H', W']``; ``[C_in, H, W]`` likewise."""
        out: Tensor = self.operator(x)
        if self.order is not None:
            out = torch.index_select(out, -3, self.order)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: those that the operator names, and the bias."""
        of_operator: set[str] = getattr(self.operator, "no_weight_decay", set)()
        return {f"operator.{name}" for name in of_operator} | (set() if self.bias is None else {"bias"})
