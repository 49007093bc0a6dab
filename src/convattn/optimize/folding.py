"""A batch norm, and for ACmix a ReLU, taken into the module that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, DropBlock2d, DropPath, FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from convattn.layers import ACmix, LocalAttention2d, MultiConvolution, ShiftConv2d, XVolution
from convattn.layers._checks import is_hooked
from convattn.layers.folding import batch_norm_line, scale_outputs

# Exact classes: a subclass may compute something else (a standardised weight, say).
CONVOLUTIONS = (nn.Conv2d, Conv2dSame, ShiftConv2d)
PRODUCERS = (*CONVOLUTIONS, nn.ConvTranspose2d, LocalAttention2d, ACmix, MultiConvolution, XVolution)
WITH_ACTIVATION = (BatchNormAct2d, FrozenBatchNormAct2d)
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, *WITH_ACTIVATION)
# What returns its input in eval mode.
NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout2d, DropBlock2d, DropPath)
LEAVES = (*PRODUCERS, *BATCH_NORMS, *NO_OPS)


@dataclass
class Folded:
    """What was folded into what, by the modules' names.

    Args:
        batch_norms: batch norm -> the module that took it over.
        activations: ReLU -> the ACmix that took it over.
        left: batch norm -> why it stays.
    """

    batch_norms: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def fold_following(model: nn.Module, readers: Mapping[str, str]) -> Folded:
    """Fold, in place, every batch norm into the convolution or operator that it alone reads.

    Args:
        model: in eval mode.
        readers: module -> the one that alone reads its output (:mod:`convattn.optimize.dataflow`).
    """
    folded = Folded()
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if type(module) not in PRODUCERS or is_hooked(module):
            continue
        following = _following(name, readers, modules)
        reader = next(following, None)
        if reader is not None and type(modules[reader]) in BATCH_NORMS:
            why = _reason_to_leave(modules[reader], module)
            if why is not None:
                folded.left[reader] = why
                continue
            _take_over(module, modules[reader])
            folded.batch_norms[reader] = name
            rest = _rest_of(modules[reader])
            if _absorbs(module, rest):
                folded.activations[f"{reader}.act"], rest = name, nn.Identity()
            put(model, modules[reader], rest)
            reader = next(following, None) if type(rest) in NO_OPS else None
        if reader is not None and _absorbs(module, modules[reader]):
            folded.activations[reader] = name
            put(model, modules[reader], nn.Identity())
    for name, module in model.named_modules():
        if type(module) in BATCH_NORMS:
            folded.left.setdefault(name, "no convolution or operator is right before it and read by it alone")
    return folded


def _following(name: str, readers: Mapping[str, str], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The modules after this one for as long as each alone reads the one before, no-ops left out."""
    while name in readers:
        name = readers[name]
        if type(modules[name]) not in NO_OPS or is_hooked(modules[name]):
            yield name


def _reason_to_leave(batch_norm: nn.Module, module: nn.Module) -> str | None:
    if is_hooked(batch_norm):
        return "it has hooks"
    if getattr(batch_norm, "running_mean", None) is None:
        return "it keeps no running statistics"
    if isinstance(module, LocalAttention2d) and not module.is_average:
        return "the attention before it is not an average of values"
    return None


def _take_over(module: nn.Module, batch_norm: nn.Module) -> None:
    if isinstance(module, (ACmix, MultiConvolution)):
        module.reparameterize()
        if module.reparameterized is not None:
            module.reparameterized.absorb(batch_norm)
    elif isinstance(module, LocalAttention2d):
        module.absorb(batch_norm)
    else:
        scale_outputs(module, *batch_norm_line(batch_norm))


def _rest_of(batch_norm: nn.Module) -> nn.Module:
    """What stays of a batch norm: timm's have a dropout and an activation inside."""
    if not isinstance(batch_norm, WITH_ACTIVATION):
        return nn.Identity()
    drop, act = batch_norm.drop, batch_norm.act
    return act if type(drop) in NO_OPS else nn.Sequential(drop, act)


def _absorbs(module: nn.Module, activation: nn.Module) -> bool:
    """Let an ACmix take a ReLU over, where both are such."""
    if not isinstance(module, ACmix) or type(activation) is not nn.ReLU or is_hooked(activation):
        return False
    module.reparameterize()
    if module.reparameterized is not None:
        module.reparameterized.absorb(activation="relu")
    return True


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is."""
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
