"""ACmix's convolution path with fc folded in, tap by tap and group by group."""

import torch
from torch import Tensor


def group_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, dilation: int = 1
) -> Tensor:
    """``[B, T * d, H, W]``, ``[T, kh, kw, N, d]`` -> ``[B, N * d, Ho, Wo]``, by loops over taps, inputs and outputs."""
    inputs, rows, columns, outputs, groups = weight.shape
    batch, _, height, width = x.shape
    x = x.unflatten(1, (inputs, groups))
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    total = [torch.zeros(batch, groups, out_height, out_width, dtype=x.dtype) for _ in range(outputs)]
    for dy in range(rows):
        for dx in range(columns):
            y = torch.arange(out_height) * stride + (dy - rows // 2) * dilation
            z = torch.arange(out_width) * stride + (dx - columns // 2) * dilation
            inside = ((y >= 0) & (y < height))[:, None] & ((z >= 0) & (z < width))
            seen = x[..., y.clamp(0, height - 1), :][..., z.clamp(0, width - 1)]
            seen = torch.where(inside, seen, 0)
            for t in range(inputs):
                for n in range(outputs):
                    total[n] = total[n] + weight[t, dy, dx, n][:, None, None] * seen[:, t]
    out = torch.stack(total, 2).flatten(1, 2)
    return out if bias is None else out + bias[:, None, None]
