"""Weighted sums over a neighbourhood, pixel by pixel (ACmix eq. 12 with the attention weights given)."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """``[B, N, K, Ho, Wo]``, ``[B, C, H, W]`` -> ``[B, C, Ho, Wo]``, by loops over pixels and offsets."""
    height, width = v.shape[-2:]
    v = v.unflatten(1, (weights.shape[1], -1))
    pixels = []
    for i in range(weights.shape[-2]):
        for j in range(weights.shape[-1]):
            total = torch.zeros_like(v[..., 0, 0])
            for m, (dy, dx) in enumerate(nbhd.offsets):
                y = nbhd.source(i * nbhd.stride[0] + dy, height)
                x = nbhd.source(j * nbhd.stride[1] + dx, width)
                if y is not None and x is not None:
                    total = total + weights[:, :, m, i, j, None] * v[..., y, x]
            pixels.append(total)
    return torch.stack(pixels, -1).unflatten(-1, weights.shape[-2:]).flatten(1, 2)
