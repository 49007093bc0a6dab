"""Dot products of queries with the keys of their neighbourhood, pixel by pixel (ACmix, the inner part of eq. 10)."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> Tensor:
    """``[B, C, Ho, Wo]``, ``[B, C, H, W]`` -> ``[B, N, K, Ho, Wo]``, by loops over pixels and offsets."""
    height, width = k.shape[-2:]
    q, k = q.unflatten(1, (num_heads, -1)), k.unflatten(1, (num_heads, -1))
    rows = []
    for i in range(q.shape[-2]):
        for j in range(q.shape[-1]):
            for dy, dx in nbhd.offsets:
                y = nbhd.source(i * nbhd.stride[0] + dy, height)
                x = nbhd.source(j * nbhd.stride[1] + dx, width)
                key = torch.zeros_like(q[..., i, j]) if y is None or x is None else k[..., y, x]
                rows.append((q[..., i, j] * key).sum(-1))
    return torch.stack(rows, -1).unflatten(-1, (*q.shape[-2:], len(nbhd))).movedim(-1, 2)
