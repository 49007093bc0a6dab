"""Finds the operators inside a network, and which of their parts are stage I, attention and convolution path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from timm.models.resnet import Bottleneck
from torch import nn

from convattn.layers.acmix_forms import ReparameterizedACmix
from convattn.layers.involution import Involution2d
from convattn.layers.multi_convolution import MultiConvolution

Path: TypeAlias = Literal["stage I", "attention", "fc", "group convolution"]
PATHS: tuple[Path, ...] = ("stage I", "attention", "fc", "group convolution")

# How networks of the field name the layers that make queries, keys and values, the reduction of the latter included.
_PROJECTIONS = (("qkv",), ("q", "kv"), ("q", "k", "v"), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True)
class Operator:
    """One operator of a network.

    Args:
        name: in the network; "" for the network itself.
        module: the operator.
        stage_one: names of its submodules that are stage I.
        attention: of those that are the attention path, where the remainder is something else.
        convolution: of those that are the convolution path.
        remainder: the path to which all else that it computes belongs.
    """

    name: str
    module: nn.Module
    stage_one: tuple[str, ...]
    attention: tuple[str, ...] = ()
    convolution: tuple[str, ...] = ()
    remainder: Path = "attention"


def find_operators(model: nn.Module) -> Iterator[Operator]:
    """The operators of a network, outermost only, in the order of its modules.

    An operator is one of this library's; any attention that projects its queries, keys and values by layers of its
    own, under the names common in the field; and the 3x3 convolution that the others replace: in the middle of a
    ResNet's bottleneck, or in place of a block's attention.

    Example:
        >>> from convattn import ACmix
        >>> [(found.name, found.stage_one) for found in find_operators(nn.Sequential(ACmix(4, 4)))]
        [('0', ('projection',))]
    """
    taken: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in taken):
            continue
        found = _operator(name, module)
        if found is not None:
            taken.append(f"{name}." if name else "")
            yield found
        if isinstance(module, Bottleneck) and isinstance(module.conv2, nn.Conv2d):
            yield Operator(f"{name}.conv2" if name else "conv2", module.conv2, ("",))


def _operator(name: str, module: nn.Module) -> Operator | None:
    if isinstance(module, nn.Conv2d):
        return Operator(name, module, ("",)) if name.rpartition(".")[2] == "attn" else None
    if isinstance(module, Involution2d):
        first = ("reduce",) if module.projection is None else ("projection", "reduce")
        return Operator(name, module, first)
    if isinstance(module, MultiConvolution):
        return _branches(name, module)
    children = {child for child, part in module.named_children() if part is not None}
    if "projection" in children and ("attention" in children or _is_ours(module)):
        return _projected(name, module, children)
    for names in _PROJECTIONS:
        if children.issuperset(names) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            parts = [getattr(module, part) for part in names]
            if all(isinstance(part, (nn.Linear, nn.Conv2d)) for part in parts):
                return Operator(name, module, names + (("sr",) if "sr" in children else ()))
    return None


def _branches(name: str, module: MultiConvolution) -> Operator:
    """X-volution and its convolution branches: what is computed of the input is stage I (table 1)."""
    first: tuple[str, ...] = ("convolution", "dilated")
    attention = getattr(module, "attention", None)
    inside = None if attention is None else _operator("", attention)
    if inside is not None:
        first += tuple(f"attention.{part}" for part in inside.stage_one)
    return Operator(name, module, first)


def _is_ours(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("convattn.layers") for kind in type(module).__mro__)


def _projected(name: str, module: nn.Module, children: set[str]) -> Operator:
    """``projection``, ``attention`` and ``convolution``, as this library's operators call their parts."""
    first: tuple[str, ...] = ("projection",)
    path: tuple[str, ...] = ()
    if "convolution" in children:
        # a convolution of the operator's input is stage I of a convolution (table 1), not the path over q, k and v
        whole = isinstance(module.convolution, nn.Conv2d)
        first, path = (("projection", "convolution"), path) if whole else (first, ("convolution",))
    if isinstance(module, ReparameterizedACmix):
        return Operator(name, module, first, ("attention",), path, "group convolution")
    return Operator(name, module, first, (), path)
