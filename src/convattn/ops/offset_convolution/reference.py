"""A convolution over any offsets, output by output and offset by offset."""

import torch
from torch import Tensor

from convattn.ops.neighborhood import Neighborhood


def offset_convolution(x: Tensor, weight: Tensor, nbhd: Neighborhood, bias: Tensor | None = None) -> Tensor:
    """``[B, C_in, H, W]``, ``[G, D * C_in, V]`` -> ``[B, G * V, Ho, Wo]``."""
    batch, inputs, height, width = x.shape
    blocks, _, outputs = weight.shape
    by_offset = weight.unflatten(1, (len(nbhd), inputs)).permute(1, 0, 3, 2).flatten(1, 2)  # [D, G * V, C_in]
    out_height, out_width = nbhd.output_size(height, width)
    rows = []
    for i in range(out_height):
        for j in range(out_width):
            total = x.new_zeros(batch, blocks * outputs) if bias is None else bias.expand(batch, -1)
            for d, (dy, dx) in enumerate(nbhd.offsets):
                y = nbhd.source(i * nbhd.stride[0] + dy, height)
                z = nbhd.source(j * nbhd.stride[1] + dx, width)
                if y is not None and z is not None:
                    total = total + x[:, :, y, z] @ by_offset[d].t()
            rows.append(total)
    return torch.stack(rows, -1).unflatten(-1, (out_height, out_width))
