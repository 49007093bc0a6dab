"""How ACmix sums its two paths, and which of its parameters must not decay."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack, get_args

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Layer

MixKind: TypeAlias = Literal["free", "alpha", "convex", "sum"]


class PathMix(Layer):
    r"""The weighted sum of the two paths, :math:`\alpha F_{att} + \beta F_{conv}` (ACmix eq. 13, table 6).

    Args:
        kind: ``"free"``: α and β are learned and start at 0.5, as in the authors' code; ``"alpha"``: α is learned
            and starts at 1, β is 1; ``"convex"``: α is learned and starts at 0.5, β is 1 - α; ``"sum"``: both are 1.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> import torch
        >>> PathMix("convex")(torch.ones(1), torch.zeros(1))
        tensor([0.5000], grad_fn=<AddBackward0>)
    """

    def __init__(self, kind: MixKind = "free", **made: Unpack[Factory]) -> None:
        super().__init__()
        made = self._factory(made)
        if kind not in get_args(MixKind):
            raise ValueError(f"mix must be one of {', '.join(map(repr, get_args(MixKind)))}, got {kind!r}")
        self.kind = kind
        self.alpha: nn.Parameter | None = None
        self.beta: nn.Parameter | None = None
        if kind != "sum":
            self.alpha = nn.Parameter(torch.empty(1, **made))
        if kind == "free":
            self.beta = nn.Parameter(torch.empty(1, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set α and β to where they start."""
        for rate in (self.alpha, self.beta):
            if rate is not None:
                nn.init.constant_(rate, 1.0 if self.kind == "alpha" else 0.5)

    def rates(self) -> tuple[Tensor, Tensor]:
        """α and β as they enter the sum, one element each."""
        if self.alpha is None:
            return torch.ones(1), torch.ones(1)
        if self.beta is not None:
            return self.alpha, self.beta
        return self.alpha, 1 - self.alpha if self.kind == "convex" else torch.ones_like(self.alpha)

    def forward(self, attention: Tensor, convolution: Tensor) -> Tensor:
        """Two maps of one shape -> their mix, in their dtype."""
        if self.alpha is None:
            return attention + convolution
        attention = attention * self.alpha.to(attention.dtype)
        if self.kind == "alpha":
            return attention + convolution
        return attention + self.rates()[1].to(convolution.dtype) * convolution

    def extra_repr(self) -> str:
        """What the constructor got."""
        return repr(self.kind)


def no_weight_decay(model: nn.Module) -> set[str]:
    """What the operators inside any network ask to be left out of weight decay, by the network's names: α and β.

    Example:
        >>> from convattn import ACmix
        >>> sorted(no_weight_decay(nn.Sequential(ACmix(8, 8))))
        ['0.mix.alpha', '0.mix.beta']
    """
    named = (
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, PathMix)
        for name, _ in module.named_parameters()
    )
    return set(named)
