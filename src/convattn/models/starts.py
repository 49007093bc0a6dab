"""Networks with operators that start from the public weights of the plain ones.

timm's registry keeps where weights are: ``timm.create_model("conv_resnet50", pretrained=True)`` takes those of its own
``resnet50``, under the same tags. A network with operators has the tags with ``init_`` before them: its weights are
made of the plain network's when they are loaded, and nobody has trained them further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from convattn.layers import ACmix, MultiConvolution, SpatialReductionACmix
from convattn.models.approximation import write_convolution


def tags_of(source: str, name: str, *, start: bool = False) -> dict[str, PretrainedCfg]:
    """timm's entries of a plain network's weights, under the name of a network here; the default first.

    Args:
        source: in timm's registry.
        name: of the network that takes these weights.
        start: whether its weights are made of them, so that the tags begin with ``init_``.

    Example:
        >>> next(iter(tags_of("resnet18", "acmix_resnet18", start=True)))
        'acmix_resnet18.init_a1_in1k'
    """
    prefix, notes = ("init_", (f"initialised from {source}, not trained further",)) if start else ("", None)
    found: list[Any] = [timm.get_pretrained_cfg(one) for one in (source, *sorted(timm.list_pretrained(f"{source}.*")))]
    return {
        f"{name}.{prefix}{cfg.tag}": replace(cfg, architecture=name, fixed_input_size=False, notes=notes)
        for cfg in found
    }


@torch.no_grad()
def from_convolutions(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a plain ResNet, for one with operators in the place of ``conv2``.

    - :class:`convattn.XVolution` and its convolutions alone compute exactly what the convolution did, in eval and in
      training mode: the kernel is their first branch's, whose batch norm has the statistics of the one that follows
      the operator and gives back what it gets; the other branches start with a gain of 0.
    - :class:`convattn.ACmix` starts with α = 0, β = 1 and the best kernel that its convolution path can hold
      (:mod:`convattn.models.approximation`).

    Args:
        weights: by the plain network's names; those of a network with operators are returned as they are.
        model: with operators.

    Raises:
        ValueError: an operator that cannot hold the kernels.
    """
    made = dict(weights)
    for name, operator in model.named_modules():
        kernel = made.get(f"{name}.weight")
        if kernel is None or not isinstance(operator, (ACmix, MultiConvolution)):
            continue
        del made[f"{name}.weight"]
        norm = f"{name.removesuffix('conv2')}bn2."
        try:
            if isinstance(operator, ACmix):
                write_convolution(operator, _convolution(operator, kernel))
            else:
                _hold(operator, kernel, made[f"{norm}running_mean"], made[f"{norm}running_var"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{name} cannot start from a kernel of {list(kernel.shape)}: {error}") from error
        made |= {f"{name}.{key}": value for key, value in operator.state_dict().items()}
    return made


def _convolution(operator: ACmix, kernel: Tensor) -> nn.Conv2d:
    expected = (operator.out_channels, operator.in_channels, *operator.convolution.kernel_size)
    if tuple(kernel.shape) != expected:
        raise ValueError(f"the operator's would be of {list(expected)}")
    size = (kernel.shape[2], kernel.shape[3])
    conv = nn.Conv2d(operator.in_channels, operator.out_channels, size, bias=False, device="meta")
    conv.weight = nn.Parameter(kernel)
    return conv


def _hold(operator: MultiConvolution, kernel: Tensor, mean: Tensor, variance: Tensor) -> None:
    """The kernel in the first branch, whose norm undoes itself, and a gain of 0 in the other ones."""
    first: Any = operator.convolution
    first.weight.copy_(kernel)
    for name in ("convolution_norm", "dilated_norm", "attention_norm"):
        norm: Any = getattr(operator, name, None)
        if norm is None:
            continue
        nn.init.zeros_(norm.weight)
        if name == "convolution_norm":
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)


@torch.no_grad()
def from_attention(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a transformer, for one with ACmix in the place of its attention: the same outputs.

    The attention path has them, α is 1 and β is 0. The convolution path is new, and learns once β has moved.

    Args:
        weights: with the names of the operator's attention path; what they have of the rest stays.
        model: with operators.

    Raises:
        ValueError: a mix of the paths that cannot leave one out.
    """
    made = dict(weights)
    for name, operator in model.named_modules():
        if isinstance(operator, (ACmix, SpatialReductionACmix)) and f"{name}.mix.alpha" not in made:
            if operator.mix.kind not in ("free", "convex"):
                raise ValueError(
                    f"{name} cannot start from attention alone with mix={operator.mix.kind!r}: take 'free' or 'convex'"
                )
            own = {f"{name}.{key}": value for key, value in operator.state_dict().items()}
            own |= {f"{name}.mix.{rate}": value for rate, value in _attention_alone(operator.mix).items()}
            made = own | made
    return made


def _attention_alone(mix: Any) -> dict[str, Tensor]:
    rates = {"alpha": torch.ones_like(mix.alpha)}
    return rates if mix.beta is None else rates | {"beta": torch.zeros_like(mix.beta)}
