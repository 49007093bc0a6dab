"""Weights of the authors' networks, under this library's names; one file for every host whose names differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from convattn.layers import ACmix, LinearPosition
from convattn.models import PVT, SAN, pvt_names, swin_names
from convattn.official import san


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_official` found.

    Args:
        loaded: how many of the model's tensors were set.
        missing: names that the model has and the checkpoint lacks.
        unexpected: names that the checkpoint has and the model lacks.
        ignored: names that carry nothing, with the reason.
    """

    loaded: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"loaded {self.loaded} tensors"]
        lines += [f"missing: {name}" for name in self.missing]
        lines += [f"unexpected: {name}" for name in self.unexpected]
        lines += [f"ignored: {name} ({why})" for name, why in self.ignored.items()]
        return "\n".join(lines)


Rename: TypeAlias = Callable[[nn.Module, dict[str, Any], dict[str, str]], dict[str, Tensor]]
_HOSTS: dict[type[nn.Module], Rename] = {
    PVT: pvt_names.rename,
    SAN: san.rename,
    SwinTransformer: swin_names.rename,
}
"""What takes the public names of a network out of a checkpoint and returns its tensors under ours."""

_NO_EFFECT = {
    "conv_p.bias": "it adds the same number to every logit of a softmax",
    "dep_conv.bias": "the authors' operator drops it",
}


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> LoadReport:
    """Load weights saved by the ACmix authors' code, or public weights of a host, into a network or a bare operator.

    Their operator has ``conv1, conv2, conv3`` (q, k, v), ``conv_p, fc, dep_conv, rate1, rate2``, in a ResNet in place
    of a bottleneck's ``conv2``; everything else keeps its name. Their Swin (build it with ``compat="official"``), and
    the public weights of Swin, PVT v1 and SAN, are known by the names of their code. A ``module.`` prefix and a
    surrounding ``state_dict`` or ``model`` entry are taken off.

    Args:
        model: an :class:`~convattn.ACmix`, or a network that holds some.
        state_dict: what ``torch.load(path, weights_only=True)`` returned.

    Returns:
        What was loaded, missing, unexpected or ignored. Print it.

    Raises:
        ValueError: nothing in it fits the model, or a tensor has another shape; the message names it.

    Example:
        >>> import torch
        >>> theirs = {f"conv{i}.{p}": torch.zeros(8, 8, 1, 1) if p == "weight" else torch.zeros(8)
        ...           for i in (1, 2, 3) for p in ("weight", "bias")}
        >>> report = load_official(ACmix(8, 8), theirs)
        >>> report.loaded, report.missing[:2]
        (2, ['attention.position.weight', 'convolution.fc'])
    """
    source = _unwrap(state_dict)
    target = model.state_dict()
    mapped: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, ACmix):
            if module.reparameterized is not None:
                raise ValueError(
                    f"{prefix or 'the operator'} is reparameterized and holds no trained parameters any more: load the "
                    "checkpoint into a new model, then reparameterize that"
                )
            mapped |= _map_operator(source, f"{prefix}." if prefix else "", module, ignored)
    for host, rename in _HOSTS.items():
        if isinstance(model, host):
            mapped |= rename(model, source, ignored)
    mapped |= {name: value for name, value in source.items() if isinstance(value, Tensor)}
    fitting = {name: value for name, value in mapped.items() if name in target}
    if not fitting:
        some = ", ".join(list(source)[:3]) or "nothing"
        raise ValueError(
            f"no name in the checkpoint fits the model: the checkpoint holds {some}, ..., the model "
            f"{', '.join(list(target)[:3])}, ...; build the model that the weights were trained in"
        )
    _check_shapes(fitting, target)
    model.load_state_dict(fitting, strict=False)
    counters = {name for name in target if name.endswith("num_batches_tracked")}
    return LoadReport(
        loaded=len(fitting),
        missing=[name for name in target if name not in fitting and name not in counters],
        unexpected=[name for name in mapped if name not in target],
        ignored=ignored,
    )


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("state_dict", "model"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def _map_operator(source: dict[str, Any], prefix: str, module: ACmix, ignored: dict[str, str]) -> dict[str, Tensor]:
    """Take one operator's names out of ``source`` and return them under ours."""
    mapped: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        names = [f"{prefix}conv{i}.{part}" for i in (1, 2, 3)]
        if all(name in source for name in names):
            mapped[f"{prefix}projection.{part}"] = torch.cat([source.pop(name) for name in names])
    renamed = {
        "fc.weight": "convolution.fc",
        "dep_conv.weight": "convolution.kernel",
        "rate1": "mix.alpha",
        "rate2": "mix.beta",
    }
    if isinstance(getattr(module.attention, "position", None), LinearPosition):
        renamed["conv_p.weight"] = "attention.position.weight"
    for theirs, ours in renamed.items():
        if f"{prefix}{theirs}" in source:
            value = source.pop(f"{prefix}{theirs}")
            mapped[f"{prefix}{ours}"] = value.flatten(1) if theirs in ("fc.weight", "conv_p.weight") else value
    for theirs, why in _NO_EFFECT.items():
        if source.pop(f"{prefix}{theirs}", None) is not None:
            ignored[f"{prefix}{theirs}"] = why
    return mapped


def _check_shapes(fitting: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    wrong = [
        f"{name} is {list(value.shape)} in the checkpoint and {list(target[name].shape)} in the model"
        for name, value in fitting.items()
        if value.shape != target[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{'; '.join(wrong[:3])}{more}; build the model with the arguments that the weights were trained with "
            f"(num_classes, num_heads, kernel sizes)"
        )
