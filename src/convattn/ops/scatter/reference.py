"""The adjoint of ``aggregate``, pixel by pixel: every output pixel adds its map to the pixels that it read."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int]) -> Tensor:
    """``[B, N, K, Ho, Wo]``, ``[B, C, Ho, Wo]`` -> ``[B, C, H, W]``, by loops over pixels and offsets."""
    height, width = size
    u = u.unflatten(1, (weights.shape[1], -1))
    grid = [[torch.zeros_like(u[..., 0, 0]) for _ in range(width)] for _ in range(height)]
    for i in range(u.shape[-2]):
        for j in range(u.shape[-1]):
            for m, (dy, dx) in enumerate(nbhd.offsets):
                y = nbhd.source(i * nbhd.stride[0] + dy, height)
                x = nbhd.source(j * nbhd.stride[1] + dx, width)
                if y is not None and x is not None:
                    grid[y][x] = grid[y][x] + weights[:, :, m, i, j, None] * u[..., i, j]
    return torch.stack([torch.stack(row, -1) for row in grid], -2).flatten(1, 2)
