"""Maps as tokens and back, and the padding that patches of a map need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._recording import are_sizes_free, map_size, size_of


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, H W, C]`` -> ``[B, C, H, W]``, without a copy: the map is channels_last.

    Example:
        >>> as_map(torch.zeros(2, 12, 5), (3, 4)).shape
        torch.Size([2, 5, 3, 4])
    """
    height, width = size[0], size[1]  # torch.fx cannot take a tuple apart
    return tokens.reshape(-1, height, width, size_of(tokens, 2)).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H W, C]``, contiguous; without a copy where the map is channels_last.

    Example:
        >>> as_tokens(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 12, 5])
    """
    height, width = map_size(x)
    return x.permute(0, 2, 3, 1).reshape(-1, height * width, size_of(x, 1)).contiguous()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and at the bottom of ``[B, C, H, W]``, up to the next multiples.

    Example:
        >>> pad_to_multiple(torch.zeros(1, 1, 5, 8), 4).shape
        torch.Size([1, 1, 8, 8])
    """
    bottom, right = ((size + multiple - 1) // multiple * multiple - size for size in map_size(x))
    # a comparison would tie an exported size to multiples or to all others
    if multiple == 1 or not (are_sizes_free() or bottom or right):
        return x
    return F.pad(x, (0, right, 0, bottom))


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns of ``[B, C, H, W]``; by index where a slice would tie an exported size."""
    if are_sizes_free():
        rows, columns = (torch.arange(n, device=x.device) for n in size)
        return x.index_select(2, rows).index_select(3, columns)
    return x if map_size(x) == size else x[:, :, : size[0], : size[1]]
