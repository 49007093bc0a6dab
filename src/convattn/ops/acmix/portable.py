"""``acmix`` out of standard operators of torch alone, the projection's rows in the order that both paths read.

The channels of q, k and v lie group by group as the convolution takes them. One transposition then gives the attention
its pixels, head by head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._layout import accumulation_dtype
from convattn.ops._recording import is_recording, map_size, size_of
from convattn.ops.acmix import composed
from convattn.ops.acmix.inputs import AcmixInputs, linear_position
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.portable import attend_pixels
from convattn.ops.group_convolution.portable import of_groups


def acmix(x: AcmixInputs) -> Tensor:
    """See :func:`convattn.ops.acmix`."""
    if is_recording():  # there may be kernels for the parts
        return composed.acmix(x)
    maps, size = 3 * x.num_heads, map_size(x.x)
    weight, bias = x.projection_weight, x.projection_bias
    by_group = weight.unflatten(0, (maps, -1)).transpose(0, 1).flatten(0, 1)
    qkv = F.conv2d(x.x, by_group, None if bias is None else bias.unflatten(0, (maps, -1)).t().flatten())
    convolution = of_groups(qkv, x.weight.to(qkv.dtype), x.bias, (*x.nbhd.stride, *x.dilation))
    out = _attention(x, qkv, size) * x.scale[:, None, None].to(qkv.dtype) + convolution.to(qkv.dtype)
    return out.relu() if x.activation == "relu" else out


def _attention(x: AcmixInputs, qkv: Tensor, size: tuple[Any, Any]) -> Tensor:
    dtype, heads, (height, width) = accumulation_dtype(qkv.dtype), x.num_heads, size
    head_dim = size_of(qkv, 1) // (3 * heads)
    pixels = qkv.reshape(-1, head_dim, 3 * heads, height * width).permute(0, 2, 3, 1).to(dtype)
    q, k, v = pixels.split(heads, 1)
    if x.position is not None:
        p = linear_position(x.position.to(accumulation_dtype(x.position.dtype)), height, width)
        k = k - p.flatten(1).t().to(dtype)
    sizes = x.nbhd.output_size(height, width)
    if x.nbhd.stride != (1, 1):
        rows, columns = (
            torch.arange(count, device=q.device) * step for count, step in zip(sizes, x.nbhd.stride, strict=True)
        )
        q = q.index_select(2, (rows[:, None] * width + columns).flatten())
    inputs = AttendInputs(q, k, v, None, None, x.nbhd, heads, x.softmax_scale)
    out = attend_pixels(inputs, (q, k, v), size)
    return out.transpose(-2, -1).reshape(-1, head_dim * heads, *sizes).to(qkv.dtype)
