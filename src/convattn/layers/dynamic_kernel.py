"""X-volution as the one dynamic convolution that it is (eq. 9), the kernel of every pixel written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convattn.layers._pooling import average_pool
from convattn.layers.folding import exact
from convattn.layers.involution import Involution2d
from convattn.layers.neighbor_sum import NeighborSum
from convattn.layers.pssa import PSSA
from convattn.layers.static_convolution import StaticBranch, merged_taps
from convattn.ops import Neighborhood, dynamic_conv
from convattn.ops.dynamic_conv import spread_taps


@dataclass(frozen=True)
class DynamicKernel:
    r"""A kernel for every pixel over a set of offsets, and a bias.

    .. math:: y(p) = \sum_\delta W_\delta(p)\, x(p + \delta) + b(p)

    Args:
        weight: ``[B, C, C_in, D, Ho, Wo]``; sizes of 1 for B, Ho and Wo where it does not depend on them.
        neighborhood: the D offsets, the stride, zeros beyond the border.
        bias: ``[B, C, Ho, Wo]``, sizes of 1 likewise.
    """

    weight: Tensor
    neighborhood: Neighborhood
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        return dynamic_conv(x, self.weight, self.neighborhood) + self.bias

    def window(self) -> Tensor:
        """The kernel on the smallest centred window that holds all offsets, ``[B, C, C_in, kh, kw, Ho, Wo]``."""
        offsets = self.neighborhood.offsets
        height, width = (2 * max(abs(offset[axis]) for offset in offsets) + 1 for axis in (0, 1))
        spread = spread_taps(self.weight, self.neighborhood, Neighborhood.window((height, width)))
        return spread.unflatten(3, (height, width))


@torch.no_grad()
def dynamic_kernel(
    x: Tensor, branches: Sequence[StaticBranch], attention: nn.Module, gain: Tensor, shift: Tensor
) -> DynamicKernel:
    """The sum of static branches and an attention, its batch norm a line, as one kernel for every pixel of ``x``.

    Raises:
        TypeError: attention without a window, or a convolution that is not centred.
    """
    uncentred = [branch.convolution for branch in branches if not branch.is_centred]
    if uncentred:
        raise TypeError(
            "a dynamic kernel lies around its output's pixel: it takes convolutions of odd kernels and one group with "
            f"padding=dilation * (kernel_size // 2) zeros, got {uncentred[0]}"
        )
    nbhd, static = merged_taps(branches)
    bias = (torch.stack([branch.bias() for branch in branches]).sum(0) + shift)[None, :, None, None].to(x.dtype)
    static = static.to(x.dtype)[None, ..., None, None]
    if isinstance(attention, PSSA) and attention.reading == "product":
        bias = bias + attention(x) * gain.to(x.dtype)[:, None, None]
        return DynamicKernel(static, nbhd, bias)
    if isinstance(attention, PSSA):
        (rates, around), values = _pssa_rates(attention, x), attention.value_weight()
        if attention.bias is not None:
            bias = bias + (attention.bias * gain).to(x.dtype)[:, None, None]
    elif isinstance(attention, Involution2d):
        rates, around = _involution_rates(attention, x), attention.neighborhood
        values = _involution_values(attention)
    else:
        raise TypeError(
            "as_dynamic_kernel needs attention over fixed offsets, PSSA or Involution2d, got "
            f"{type(attention).__name__}: its weights have no window"
        )
    rates = rates * gain.to(x.dtype)[:, None, None, None]
    dynamic = rates.unsqueeze(2) * values.to(x.dtype)[None, :, :, None, None, None]
    union = nbhd | around
    weight = spread_taps(static, nbhd, union) + spread_taps(dynamic, around, union)
    return DynamicKernel(weight, union, bias)


def _pssa_rates(attention: PSSA, x: Tensor) -> tuple[Tensor, Neighborhood]:
    """What multiplies v, ``[B, C, D, Ho, Wo]``: the weight times the similarity; and at which D offsets."""
    q, k, _ = attention.project(x)
    heads = attention.num_heads
    products = (q.unsqueeze(2) * _windows(k, attention.neighborhood)).unflatten(1, (heads, -1))
    similarity: Tensor = products.sum(2) * products.shape[2] ** -0.5
    if attention.position is not None:
        similarity = similarity + attention.position.to(x.dtype)[..., None, None]
    weight = attention.weight.t().to(x.dtype)[..., None, None]
    rates = similarity.repeat_interleave(attention.out_channels // heads, 1) * weight
    outer = attention.neighbor_sum
    return (rates, attention.neighborhood) if outer is None else _summed(rates, attention.neighborhood, outer)


def _summed(rates: Tensor, nbhd: Neighborhood, outer: NeighborSum) -> tuple[Tensor, Neighborhood]:
    """Eq. 7's sum over the neighbours' kernels: what a neighbour k reads at d, the pixel reads at k + d."""
    region, channels = outer.neighborhood, rates.shape[1]
    seen = _windows(rates.flatten(1, 2), region).unflatten(1, (channels, -1))  # [B, C, D, K, Ho, Wo]
    seen = seen * outer.weight.t().to(rates.dtype)[:, None, :, None, None]
    reached = [(y + dy, x + dx) for dy, dx in nbhd.offsets for y, x in region.offsets]
    offsets = sorted(set(reached))
    index = torch.tensor([offsets.index(offset) for offset in reached], device=rates.device)
    summed = seen.new_zeros((*seen.shape[:2], len(offsets), *seen.shape[4:])).index_add_(2, index, seen.flatten(2, 3))
    return summed, Neighborhood(tuple(offsets), region.stride, "zeros")


def _involution_rates(attention: Involution2d, x: Tensor) -> Tensor:
    kernels: Tensor = attention.span(attention.reduce(average_pool(x, attention.neighborhood.stride)))
    by_group = kernels.unflatten(1, (attention.groups, -1))
    return torch.repeat_interleave(by_group, attention.out_channels // attention.groups, 1)


def _involution_values(attention: Involution2d) -> Tensor:
    """v as a matrix ``[C, C_in]``, float64."""
    if attention.projection is not None:
        return exact(attention.projection.weight).flatten(1)
    return torch.eye(attention.out_channels, dtype=torch.float64, device=attention.span.weight.device)


def _windows(x: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, D, Ho, Wo]``, the pixels that every output looks at."""
    return torch.stack([*nbhd.views(nbhd.pad(x), x.shape[2], x.shape[3])], 2)
