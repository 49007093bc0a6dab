"""Dynamic convolution, X-volution's eq. 9 literally: a kernel of its own for every pixel."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def dynamic_conv(x: Tensor, kernel: Tensor, nbhd: Neighborhood, groups: int = 1) -> Tensor:
    """``[B, C_in, H, W]``, ``[B, C_out, C_in/groups, D, Ho, Wo]`` -> ``[B, C_out, Ho, Wo]``, by loops over pixels."""
    (height, width), (out_height, out_width) = x.shape[-2:], nbhd.output_size(*x.shape[-2:])
    kernel = kernel.expand(x.shape[0], -1, -1, -1, out_height, out_width)
    inputs, outputs = kernel.shape[2], kernel.shape[1] // groups
    pixels = []
    for i in range(out_height):
        for j in range(out_width):
            total = torch.zeros_like(kernel[:, :, 0, 0, i, j])
            for d, (dy, dx) in enumerate(nbhd.offsets):
                row = nbhd.source(i * nbhd.stride[0] + dy, height)
                column = nbhd.source(j * nbhd.stride[1] + dx, width)
                seen = torch.zeros_like(x[..., 0, 0]) if row is None or column is None else x[..., row, column]
                by_output = seen.unflatten(1, (groups, inputs)).repeat_interleave(outputs, 1)
                total = total + (kernel[:, :, :, d, i, j] * by_output).sum(2)
            pixels.append(total)
    return torch.stack(pixels, -1).unflatten(-1, (out_height, out_width))
