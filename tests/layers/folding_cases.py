"""What the tests of inference forms share."""

import copy

import torch
from torch import nn

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SIZES = [(1, 1), (2, 3), (9, 6)]


def drawn(layer):
    """Every parameter and statistic away from where it starts."""
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.2, 2)
            elif value.is_floating_point():
                value.normal_().mul_(0.5)
    return layer


def trained(kind, *args, **options):
    """In eval mode, drawn."""
    return drawn(kind(*args, **{"dtype": torch.float64} | options).eval())


def trained_batch_norm(channels):
    return trained(lambda **options: nn.BatchNorm2d(channels, **options))


def folded_copy(layer, *args, **options):
    layer = copy.deepcopy(layer)
    layer.reparameterize(*args, **options)
    return layer


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()
