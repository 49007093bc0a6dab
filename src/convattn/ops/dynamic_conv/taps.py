"""Kernels over explicit offsets: what the branches of a re-parameterised operator are brought to before they add."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops.neighborhood import IntPair, Neighborhood


def taps(weight: Tensor, nbhd: Neighborhood, *, dilation: IntPair = 1, groups: int = 1) -> Tensor:
    """A convolution's kernel over explicit offsets: zero at those where it has no tap.

    Args:
        weight: that of ``conv2d`` padded by half its extent, ``[C_out, C_in / groups, kh, kw]``.
        nbhd: the D offsets, every tap among them.
        dilation: distance between the taps of the convolution.
        groups: that of the convolution; what joins two groups is zero.

    Returns:
        ``[1, C_out, C_in, D, 1, 1]``, which :func:`dynamic_conv` takes and a kernel for every pixel can be added to.

    Raises:
        ValueError: a tap whose offset is not in ``nbhd``, or channels that do not divide into groups.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood
        >>> from convattn.ops.dynamic_conv import taps
        >>> around = Neighborhood.window(3) | Neighborhood.window(5, dilation=2)
        >>> taps(torch.ones(8, 4, 3, 3), around).sum((0, 1, 2, 4, 5)).count_nonzero(), len(around)
        (tensor(9), 33)
    """
    if weight.dim() != 4 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"weight must be [C_out, C_in / groups, kh, kw] with C_out a multiple of groups={groups}, "
            f"got {list(weight.shape)}"
        )
    own = Neighborhood.window((weight.shape[2], weight.shape[3]), dilation=dilation)
    spread = spread_taps(weight.flatten(2)[None, ..., None, None], own, nbhd)
    if groups == 1:
        return spread
    blocks = spread.unflatten(1, (groups, -1))
    whole = blocks.new_zeros((*blocks.shape[:3], groups, *blocks.shape[3:]))
    for g in range(groups):
        whole[:, g, :, g] = blocks[:, g]
    return whole.flatten(3, 4).flatten(1, 2)


def spread_taps(kernel: Tensor, source: Neighborhood, target: Neighborhood) -> Tensor:
    """A kernel ``[..., D, Ho, Wo]`` over the offsets of one neighbourhood over those of another that holds them all.

    Raises:
        ValueError: an offset of ``source`` that ``target`` lacks, or a kernel of another number of taps.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood
        >>> cross = Neighborhood(((-1, 0), (0, -1), (0, 1), (1, 0)))
        >>> spread_taps(torch.ones(1, 2, 2, 4, 5, 5), cross, Neighborhood.window(3))[0, 0, 0, :, 0, 0]
        tensor([0., 1., 0., 1., 0., 1., 0., 1., 0.])
    """
    if kernel.dim() < 3 or kernel.shape[-3] != len(source):
        raise ValueError(
            f"kernel must be [..., {len(source)}, Ho, Wo], a tap for each offset, got {list(kernel.shape)}"
        )
    missing = [offset for offset in source.offsets if offset not in target.offsets]
    if missing:
        raise ValueError(f"the neighbourhood to spread to lacks the offsets {missing}; join both with |")
    index = torch.tensor([target.offsets.index(offset) for offset in source.offsets], device=kernel.device)
    whole = kernel.new_zeros((*kernel.shape[:-3], len(target), *kernel.shape[-2:]))
    return whole.index_copy(-3, index, kernel)
