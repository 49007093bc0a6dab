"""Patchwise attention for inference: its network without batch norms."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from convattn.layers.folding import batch_norm_line, check_folds
from convattn.ops._layout import accumulation_dtype


class Folded(NamedTuple):
    """γ without batch norms, see :func:`fold`.

    Args:
        low: where the features are clamped from below, ``[F]``, F = C_qk (K² + 1).
        high: from above, ``[F]``.
        weight: of the first linear layer, ``[C/s, F]``.
        bias: ``[C/s]``.
        second_weight: of the second linear layer, ``[K² C/s, C/s]``.
        second_bias: ``[K² C/s]``.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    bias: Tensor
    second_weight: Tensor
    second_bias: Tensor


class FoldedNetwork(nn.Module):
    """What :meth:`convattn.layers.PatchwiseAttention.reparameterize` leaves of the network that makes the weights.

    Args:
        folded: its parameters.
    """

    form: Literal["folded"] = "folded"

    def __init__(self, folded: Folded) -> None:
        super().__init__()
        for name, part in folded._asdict().items():
            self.register_parameter(name, nn.Parameter(part.clone()))

    def parts(self) -> Folded:
        """The parameters."""
        return Folded(**dict(self.named_parameters()))


@torch.no_grad()
def fold(weights: nn.Sequential, query_channels: int, largest: float) -> Folded:
    r"""Batch norm, ReLU, convolution, twice, without batch norms: a clamp, a linear layer, a ReLU, a linear layer.

    .. math:: \mathrm{relu}(a x + b) = a \max(x, -b/a) + b \quad (a > 0), \qquad a \min(x, -b/a) + b \quad (a < 0)

    so a goes into the weights of the convolution and b through it into its bias. The weights of the second
    convolution follow as they are. Features are ordered as :meth:`PatchwiseAttention._hidden` gathers them, the queries
    first and then tap by tap, where the convolution's keys go channel by channel.

    Args:
        weights: the two batch norms and convolutions, as :class:`PatchwiseAttention` makes them.
        query_channels: of the queries, and of the keys at each tap.
        largest: what queries and keys cannot exceed.

    Raises:
        ValueError: a batch norm without running statistics.
        TypeError: parts put in by hand.
    """
    norm, conv, second_norm, second = (weights[i] for i in (0, 2, 3, 5))
    if not isinstance(conv, nn.Conv2d) or not isinstance(second, nn.Conv2d) or second.bias is None:
        raise TypeError(f"the weights' network must hold two 1x1 convolutions, the last with a bias, got {weights}")
    check_folds(weights)
    matrix, second_weight, second_bias = conv.weight.detach(), second.weight.detach(), second.bias.detach()
    device, dtype = matrix.device, matrix.dtype
    gain, shift = batch_norm_line(norm)
    corner = -shift / gain
    rising, falling = gain > 0, gain < 0
    # the corner lies beyond every feature: always zero
    is_zero = (rising & (corner > largest)) | (falling & (corner < -largest))
    is_constant = is_zero | (gain == 0)
    no_bound = torch.finfo(dtype).max  # no infinity: a moving average of weights makes NaN of it
    low = torch.where(rising & ~is_constant, corner, -no_bound)
    high = torch.where(falling & ~is_constant, corner, no_bound)
    constant = torch.where(is_zero, 0, torch.where(gain == 0, shift.relu(), shift))
    precise = accumulation_dtype(dtype)
    second_gain, second_shift = (part.to(device, precise) for part in batch_norm_line(second_norm))
    matrix = matrix.flatten(1).to(precise) * second_gain[:, None]
    bias = matrix @ constant.to(device, precise) + second_shift
    matrix = matrix * torch.where(is_constant, 0, gain).to(device, precise)

    def reordered(values: Tensor) -> Tensor:
        keys = values[..., query_channels:].unflatten(-1, (query_channels, -1)).transpose(-1, -2).flatten(-2)
        return torch.cat([values[..., :query_channels], keys], -1).to(device, dtype)

    return Folded(
        reordered(low), reordered(high), reordered(matrix), bias.to(dtype), second_weight.flatten(1), second_bias
    )
