"""A convolution over any set of offsets as a module, for inference forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.layers.folding import exact, parameter_like, scaled
from convattn.ops import Neighborhood, offset_convolution
from convattn.ops.offset_convolution import blocks_of_outputs


class OffsetConvolution(nn.Module):
    """One convolution over any offsets (:func:`convattn.ops.offset_convolution`).

    Args:
        weight: ``[C, C_in, D]``.
        bias: ``[C]`` or None.
        nbhd: the D offsets, the stride and the border.
        like: the parameter whose dtype, device and ``requires_grad`` its own have.

    Example:
        >>> right = Neighborhood(((0, 1),), (1, 2), border="zeros")
        >>> layer = OffsetConvolution(torch.ones(2, 4, 1), None, right, like=torch.ones(1))
        >>> layer(torch.ones(1, 4, 2, 2))[0, :, 0]
        tensor([[4.],
                [4.]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, nbhd: Neighborhood, *, like: Tensor) -> None:
        super().__init__()
        self.neighborhood = nbhd
        self.weight = parameter_like(blocks_of_outputs(weight.permute(2, 1, 0)), like)
        self.bias = None if bias is None else parameter_like(bias, like)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        return offset_convolution(x, self.weight, self.neighborhood, self.bias)

    def matrix(self) -> Tensor:
        """The weights of all offsets side by side, ``[C, D * C_in]`` in float64."""
        return exact(self.weight).transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor | None = None) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        self.weight = scaled(self.weight, gain.unflatten(0, (len(self.weight), 1, -1)))
        if self.bias is not None:
            self.bias = scaled(self.bias, gain, shift)

    def extra_repr(self) -> str:
        """What it holds."""
        taps, stride = len(self.neighborhood), self.neighborhood.stride
        return f"offsets={taps}, weight={list(self.weight.shape)}, stride={stride}"
