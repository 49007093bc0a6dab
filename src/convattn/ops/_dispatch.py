"""Which implementation of an operator runs. Nothing else under ``ops`` reads the device or the environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Args:
        run: takes what the operator's custom op takes, less the backend's name.
        not_supported_reasons: why it cannot run on this machine or on these tensors; empty when it can.
    """

    run: Callable[..., Any]
    not_supported_reasons: Callable[..., list[str]] = lambda *tensors: []


_backends: dict[str, dict[str, Backend]] = {}


def register_backend(op: str, name: str, backend: Backend) -> None:
    """Add an implementation of ``op``; those registered first are preferred by ``"auto"``."""
    _backends.setdefault(op, {})[name] = backend


def backends() -> dict[str, dict[str, list[str]]]:
    """For every operator and backend, the reasons why the backend is off on this machine (none: it can run).

    Example:
        >>> import convattn
        >>> convattn.ops.backends()["attend"]["eager"]
        []
    """
    return {
        op: {name: backend.not_supported_reasons() for name, backend in named.items()}
        for op, named in _backends.items()
        if not op.endswith("_backward")
    }


def select(op: str, name: str, *tensors: Tensor) -> Callable[..., Any]:
    """The implementation called ``name``, or under ``"auto"`` the first that can run on these tensors.

    Raises:
        ValueError: no backend of that name, or the one named cannot run; the message gives its reasons.
    """
    named = _backends[op]
    if name == "auto":
        for backend in named.values():
            if not backend.not_supported_reasons(*tensors):
                return backend.run
    if name not in named:
        raise ValueError(f"{op} has no backend {name!r}; it has 'auto', {', '.join(map(repr, named))}")
    reasons = named[name].not_supported_reasons(*tensors)
    if reasons:
        raise ValueError(f"backend {name!r} of {op} cannot run here: {'; '.join(reasons)}")
    return named[name].run


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that ``torch.autocast`` asks for, as a convolution's would be; float64 stays."""
    device_type = tensors[0].device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def working_set_bytes(device: torch.device) -> int:
    """How much a tile-wise loop may hold at once: about a core's cache on a CPU, enough to fill a GPU."""
    return 4 << 20 if device.type == "cpu" else 512 << 20
