"""What a block does for its own inference form: timm's ``fuse``, ``reparameterize`` and ``switch_to_deploy``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from convattn.layers._checks import is_hooked
from convattn.optimize.folding import BATCH_NORMS, CONVOLUTIONS
from convattn.optimize.report import largest_difference

Call: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
"""What a module was called with."""

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")
_READ = (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)
"""What a method reads the weights of, and takes for what the first of its classes computes."""
_AS_READ = (*CONVOLUTIONS, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, *BATCH_NORMS)
ROUNDING = torch.finfo(torch.float32).eps ** 0.5
"""Some of timm's methods compute in float32, whatever the block is in."""


def own_method(module: nn.Module) -> Callable[[], Any] | None:
    """timm's convention: the first of its methods that the module has, if it takes no argument."""
    for name in _METHODS:
        method = getattr(module, name, None)
        if not callable(method) or isinstance(method, nn.Module):
            continue
        if all(p.default is not p.empty for p in inspect.signature(method).parameters.values()):
            return method
    return None


def by_own_method(module: nn.Module) -> nn.Module:
    """What the method returns, or the module itself; some of timm's make float32 on the CPU out of anything."""
    like = {(t.device, t.dtype) for t in module.parameters()}
    method = own_method(module)
    result = None if method is None else method()
    fused = result if isinstance(result, nn.Module) else module
    return fused.to(*like.pop()) if len(like) == 1 else fused


def refusal(module: nn.Module, call: Call | None) -> str | None:
    """Why a block's own method would give something else than the block computes, or None.

    The method reads the weights of the convolutions that the block was written with. Where other modules have
    replaced them it raises, or folds something else.

    Args:
        module: the block, in eval mode; it is left as it is.
        call: what it was called with in a run. With it, the method is tried on a copy, in float64. Without it, or
            where the block does not run in float64, a block is refused that holds anything of another library.
    """
    if is_hooked(module):
        return "it has hooks"
    foreign = next(_foreign_parts(module), None)
    trial = copy.deepcopy(module)
    expected = None if call is None else _outputs(trial, call)
    if expected is None and foreign is not None:
        return _unknown(foreign)
    try:
        fused = by_own_method(trial)
    except Exception as error:  # whatever the block's own code raises on what it does not know
        return _unknown(foreign) or f"its own method raises {type(error).__name__}"
    if expected is None or call is None:
        return None
    got = _outputs(fused, call)
    if got is None or largest_difference(expected, got)[1] > ROUNDING:
        return _unknown(foreign) or "its own method changes its outputs"
    return None


def _unknown(foreign: str | None) -> str | None:
    return foreign and f"its own method does not know the {foreign} in it"


def _foreign_parts(module: nn.Module) -> Iterator[str]:
    """The classes in a block that its method may not know: of other libraries, and special convolutions and norms."""
    known = {"torch", _library(module)}
    for part in module.modules():
        if _library(part) not in known or (isinstance(part, _READ) and type(part) not in _AS_READ):
            yield type(part).__name__


def _library(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _outputs(module: nn.Module, call: Call) -> list[Tensor] | None:
    """In float64; None where it cannot be run so."""
    args, kwargs = tree_map(_exact, call)
    try:
        return [t for t in tree_leaves(module.double()(*args, **kwargs)) if isinstance(t, Tensor)]
    except Exception:  # whatever the block's own code raises
        return None


def _exact(value: Any) -> Any:
    """A copy in float64, for a block that writes into its inputs."""
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.float64, copy=True) if value.is_floating_point() else value.clone()
