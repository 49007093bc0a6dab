"""ACmix, its equations literally: a projection, local attention and a folded convolution tap by tap, their mix."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.attend import reference
from convattn.ops.neighborhood import Neighborhood


def acmix(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    nbhd: Neighborhood,
    num_heads: int,
    dilation: tuple[int, int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    """See :func:`convattn.ops.acmix`."""
    qkv = F.conv2d(x, projection_weight, projection_bias)
    q, k, v = qkv.chunk(3, 1)
    height, width = x.shape[-2:]
    if position is not None:
        xs, ys = (torch.linspace(-1, 1, size, dtype=position.dtype) for size in (width, height))
        p = position[:, :1, None] * xs + position[:, 1:, None] * ys[:, None]
        k = k - p.repeat(num_heads, 1, 1)
    step_y, step_x = nbhd.stride
    centres = q[..., ::step_y, ::step_x]
    attention = reference.attend(centres, k, v, None, None, nbhd, num_heads, (k.shape[1] // num_heads) ** -0.5)
    out = attention * scale[:, None, None] + _convolution(qkv, weight, num_heads, nbhd.stride, dilation)
    if bias is not None:
        out = out + bias[:, None, None]
    return out.relu() if activation == "relu" else out


def _convolution(
    qkv: Tensor, weight: Tensor, num_heads: int, stride: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    kernel_h, kernel_w = weight.shape[1:3]
    (step_h, step_w), (height, width) = dilation, qkv.shape[-2:]
    pad_h, pad_w = step_h * (kernel_h // 2), step_w * (kernel_w // 2)
    by_head = F.pad(qkv, (pad_w, pad_w, pad_h, pad_h)).unflatten(1, (3 * num_heads, -1))
    out: Tensor = torch.zeros((), dtype=qkv.dtype)
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(i * step_h, i * step_h + height, stride[0])
            columns = slice(j * step_w, j * step_w + width, stride[1])
            out = out + torch.einsum("btdhw,tod->bdohw", by_head[..., rows, columns], weight[:, i, j])
    return out.flatten(1, 2)
