"""What tests of layers share: parameters away from where a layer starts them, and a comparison with gradients."""

import torch
from torch import nn


def moved(net: nn.Module, scale: float = 0.4) -> nn.Module:
    """The network, each parameter drawn from a normal distribution of that deviation."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return net


def check_values_and_gradients(
    ours: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...], **tolerance: float
) -> None:
    """Two results are the same, and so are their gradients under a fixed weighting."""
    torch.testing.assert_close(ours, expected, **tolerance)
    ramp = torch.linspace(-1, 1, expected.numel(), dtype=expected.dtype).view_as(expected)
    gradients = (torch.autograd.grad(out, inputs, ramp) for out in (ours, expected))
    torch.testing.assert_close(*gradients, **tolerance)
