"""Parameters for tests: away from where a layer starts them, so that each has an effect."""

import torch
from torch import nn


def moved(net: nn.Module, scale: float = 0.4) -> nn.Module:
    """The network, each parameter drawn from a normal distribution of that deviation."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return net
