"""Maps as tokens and back, and the padding that patches of a map need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._recording import is_exporting


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, H W, C]`` -> ``[B, C, H, W]``, without a copy: the map is channels_last.

    Example:
        >>> as_map(torch.zeros(2, 12, 5), (3, 4)).shape
        torch.Size([2, 5, 3, 4])
    """
    return tokens.transpose(1, 2).unflatten(2, size)


def as_tokens(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H W, C]``, contiguous; without a copy where the map is channels_last.

    Example:
        >>> as_tokens(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 12, 5])
    """
    return x.flatten(2).transpose(1, 2).contiguous()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and at the bottom of ``[B, C, H, W]``, up to the next multiples.

    Example:
        >>> pad_to_multiple(torch.zeros(1, 1, 5, 8), 4).shape
        torch.Size([1, 1, 8, 8])
    """
    bottom, right = ((size + multiple - 1) // multiple * multiple - size for size in x.shape[-2:])
    # a comparison would tie an exported size to multiples or to all others
    if multiple == 1 or not (is_exporting() or bottom or right):
        return x
    return F.pad(x, (0, right, 0, bottom))


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns of ``[B, C, H, W]``; by index where a slice would tie an exported size."""
    if is_exporting():
        rows, columns = (torch.arange(n, device=x.device) for n in size)
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, : size[0], : size[1]]
