"""Networks to optimize, and what they are compared with."""

import torch
from torch import nn

from convattn.optimize import optimize

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def trained(net, dtype=torch.float64):
    """Statistics and parameters away from where they start; in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if getattr(module, "running_mean", None) is None:
                continue
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                module.weight.copy_(torch.rand_like(module.weight) + 0.5)
                module.bias.copy_(torch.randn_like(module.bias) * 0.2)
        for name, parameter in net.named_parameters():
            if name.endswith((".alpha", ".beta", ".kernel")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net.to(dtype).eval()


def optimized(net, *inputs, **options):
    """The optimized network and its report, once it was seen to be exact."""
    reports = []
    fast = optimize(net, inputs or None, report=reports.append, **options)
    (report,) = reports
    if inputs:
        assert report.relative_difference < 1e-12
    return fast, report


def batch_norms(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


def norm(channels=8, **options):
    return nn.BatchNorm2d(channels, **options)
