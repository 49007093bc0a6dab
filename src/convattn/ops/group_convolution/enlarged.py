"""``group_convolution`` of maps that are enlarged first, each pixel to a square: PVT's k and v."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._layout import convolution_dtype
from convattn.ops._recording import size_of
from convattn.ops.group_convolution import group_convolution
from convattn.ops.group_convolution.portable import by_group

WORTHWHILE = 4
"""From squares of this side on, torch's transposed convolution takes less time on a CPU than our kernel on large maps.

64 channels a head, 56x56 by 8x8, one image: 0.42 ms in place of 1.38; 14x14 by 2x2: 1.32 in place of 0.43.
"""


def enlarged_group_convolution(x: Tensor, weight: Tensor, ratio: int) -> Tensor:
    """``group_convolution(interpolate(x, scale_factor=ratio, mode="nearest"), weight)``.

    For runtimes and for large squares, one transposed convolution that never makes the large map: every pixel adds to
    the outputs around its square what the taps that fall into the square sum to.

    Args:
        x: ``[B, T * d, h, w]``.
        weight: ``[T, kh, kw, N, d]``, odd kernel sizes.
        ratio: side of the square.

    Returns:
        ``[B, N * d, ratio * h, ratio * w]``.

    Example:
        >>> enlarged_group_convolution(torch.randn(1, 6 * 8, 5, 7), torch.randn(6, 3, 3, 2, 8), 2).shape
        torch.Size([1, 16, 10, 14])
    """
    if ratio == 1:
        return group_convolution(x, weight)
    if _dispatch.needs_standard_operators() or _dispatch.is_portable_wanted() or _is_worthwhile(x, ratio):
        return _transposed(x, weight, ratio)
    size: Any = (size_of(x, 2) * ratio, size_of(x, 3) * ratio)
    large = F.interpolate(x.contiguous(memory_format=torch.channels_last), size=size, mode="nearest")
    return group_convolution(large, weight)


def _is_worthwhile(x: Tensor, ratio: int) -> bool:
    half = _dispatch.autocast(x)[0].dtype in (torch.float16, torch.bfloat16)
    return x.is_cpu and ratio >= WORTHWHILE and not half


def _transposed(x: Tensor, weight: Tensor, ratio: int) -> Tensor:
    inputs, rows, columns, outputs, groups = map(int, weight.shape)
    dtype = convolution_dtype(x)
    taps = weight.to(dtype).flip(1, 2).permute(4, 0, 3, 1, 2).reshape(-1, 1, rows, columns)
    square = torch.ones(1, 1, ratio, ratio, dtype=dtype, device=x.device)
    kernel = F.conv2d(taps, square, padding=ratio - 1)
    kernel = kernel.reshape(groups * inputs, outputs, rows + ratio - 1, columns + ratio - 1)
    maps = by_group(x, inputs, groups).to(dtype)
    return F.conv_transpose2d(maps, kernel, None, ratio, (rows // 2, columns // 2), groups=groups).to(x.dtype)
