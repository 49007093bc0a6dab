"""Which implementation of an operator runs. Nothing else under ``ops`` reads the device or the environment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from convattn.ops import _native
from convattn.ops.neighborhood import Neighborhood


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Args:
        run: takes what the operator's custom op takes, less the backend's name.
        not_supported_reasons: why it cannot run on this machine or on these inputs (the operator's tensors, or what
            stands for them); empty when it can.
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


def select(op: str, name: str, *inputs: Any) -> Callable[..., Any]:
    """The implementation called ``name``, or under ``"auto"`` the first that can run on these inputs.

    Raises:
        ValueError: no backend of that name, or the one named cannot run; the message gives its reasons.
    """
    named = _backends[op]
    if name == "auto":
        for backend in named.values():
            if not backend.not_supported_reasons(*inputs):
                return backend.run
    if name not in named:
        raise ValueError(f"{op} has no backend {name!r}; it has 'auto', {', '.join(map(repr, named))}")
    reasons = named[name].not_supported_reasons(*inputs)
    if reasons:
        raise ValueError(f"backend {name!r} of {op} cannot run here: {'; '.join(reasons)}")
    return named[name].run


_native_reasons = tuple(_native.reasons())


LARGEST_SIZE = 2**27
"""What the CPU kernels take in one dimension: they count pixels of a row, channels and taps in 32 bits."""
FARTHEST_OFFSET = 1024
"""How far an offset may reach for the CPU kernels, which pad what they read by as much."""


def native_reasons(*tensors: Tensor | None) -> list[str]:
    """Why the CPU kernels cannot run on this machine or on these tensors, the map first; empty when they can."""
    reasons = list(_native_reasons)
    for x in tensors[:1]:
        if x is not None and not x.is_cpu:
            reasons.append(f"needs tensors on the CPU, got {x.device.type}")
        if x is not None and x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            reasons.append(f"computes in float32; got {x.dtype}")
    return reasons + size_reasons(*tensors)


def size_reasons(*tensors: Tensor | None) -> list[str]:
    """The same as :func:`native_reasons`, for the sizes alone."""
    return [
        f"takes sizes below {LARGEST_SIZE}, got {list(x.shape)}"
        for x in tensors
        if x is not None and not 0 < x.numel() < LARGEST_SIZE and max(x.shape) >= LARGEST_SIZE
    ]


def native_offset_reasons(nbhd: Neighborhood | None = None, *tensors: Tensor | None) -> list[str]:
    """The same as :func:`native_reasons`, for the kernels over any set of offsets."""
    reasons = native_reasons(*tensors)
    if nbhd is not None and max(nbhd.farthest, *nbhd.stride) > FARTHEST_OFFSET:
        far = max(nbhd.farthest, *nbhd.stride)
        reasons.append(f"takes offsets and strides of at most {FARTHEST_OFFSET} pixels, got {far}")
    return reasons


def triton_offset_reasons(nbhd: Neighborhood | None = None, *tensors: Tensor) -> list[str]:
    """The same as :func:`triton_reasons`, for the kernels over any set of offsets; they take any."""
    return triton_reasons(*tensors)


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def triton_reasons(*tensors: Tensor) -> list[str]:
    """Why the GPU kernels cannot run on this machine or on these tensors; empty when they can.

    Under ``TRITON_INTERPRET=1``, set before Python starts, Triton runs kernels on the CPU, slowly: for tests.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons = []
    if not interpreted and not torch.cuda.is_available():
        reasons.append("needs an NVIDIA or AMD GPU; torch finds none")
    if not _is_installed("triton"):
        reasons.append("needs the package triton, which is not installed; pip install triton")
    for x in tensors[:1]:
        if x.device.type != "cuda" and not interpreted:
            reasons.append(f"needs tensors on the GPU, got {x.device.type}")
        elif x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
            major, minor = torch.cuda.get_device_capability(x.device)
            reasons.append(f"needs an NVIDIA GPU of compute capability 8.0 or higher, got {major}.{minor}")
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            reasons.append(f"computes in float32; got {x.dtype}")
    return reasons


_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})


def runs_directly(*tensors: Tensor | None) -> bool:
    """Whether an operator may call its implementation past torch's dispatcher, which costs as much as a small layer.

    Only where nothing is recorded, traced, transformed or watched, so that nobody can tell the difference.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._profiler_enabled()
        or not _PLAIN.issuperset(map(type, tensors))
    )


def exports_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` is tracing: ONNX has standard operators only."""
    return bool(torch.onnx.is_in_onnx_export())


_onednn = torch.backends.mkldnn.is_available()


def pointwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, through oneDNN where it is large: on one thread torch prefers a form three times slower."""
    large = x.numel() > 20_000 and torch.get_num_threads() == 1
    if _onednn and large and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.mkldnn_convolution(x, weight, bias, [0, 0], [1, 1], [1, 1], 1)
    return torch.nn.functional.conv2d(x, weight, bias)


def triton_takes_tiles() -> bool:
    """Whether kernels on tiles, sized for an NVIDIA GPU's shared memory, fit the GPU: AMD's has less."""
    return torch.version.hip is None


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that ``torch.autocast`` asks for, as a convolution's would be; float64 stays."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device_type = tensors[0].device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def working_set_bytes(device: torch.device) -> int:
    """How much a tile-wise loop may hold at once: about a core's cache on a CPU, enough to fill a GPU."""
    return 4 << 20 if device.type == "cpu" else 512 << 20


def cores_of(device: torch.device) -> int:
    """How many working sets are worked on at a time: one a thread on a CPU; a GPU's is sized for all of it."""
    return torch.get_num_threads() if device.type == "cpu" else 1
