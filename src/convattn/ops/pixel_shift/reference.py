"""Pixel-shift self-attention pixel by pixel, offset by offset (X-volution eq. 7 and section 3.2)."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    nbhd: Neighborhood,
    num_heads: int,
) -> Tensor:
    """``[B, C, Ho, Wo]``, ``[B, C, H, W]`` twice, ``[D, C]``, ``[N, D]`` -> ``[B, C, Ho, Wo]``."""
    height, width = k.shape[-2:]
    head_dim = k.shape[1] // num_heads
    rows = []
    for i in range(q.shape[-2]):
        for j in range(q.shape[-1]):
            total = torch.zeros_like(q[..., i, j])
            for d, (dy, dx) in enumerate(nbhd.offsets):
                y = nbhd.source(i * nbhd.stride[0] + dy, height)
                x = nbhd.source(j * nbhd.stride[1] + dx, width)
                outside = y is None or x is None
                key = torch.zeros_like(total) if outside else k[..., y, x]
                similarity = (q[..., i, j] * key).unflatten(1, (num_heads, head_dim)).sum(2) * head_dim**-0.5
                if bias is not None:
                    similarity = similarity + bias[:, d]
                term = weight[d] * similarity.repeat_interleave(head_dim, 1)
                if v is not None:
                    term = term * (torch.zeros_like(total) if outside else v[..., y, x])
                total = total + term
            rows.append(total)
    return torch.stack(rows, -1).unflatten(-1, tuple(q.shape[-2:]))
