"""Which implementation of an operator runs. Nothing else under ``ops`` reads the device or the environment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn.ops import _native

PORTABLE = "portable"
"""The backend of standard operators of torch, which exporters, ``torch.func`` and forward mode get by themselves."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Args:
        run: the operator's inputs -> its output, and what is kept for the backward where the operator keeps something.
        backward: the output's gradient, the inputs, what was kept -> the gradient of each tensor, None for one that
            is not there. None where the gradient is made of other operators.
        not_supported_reasons: why it cannot run on this machine or on these inputs; empty when it can.
        prepare: the inputs -> the output as a function of the map, for inference on maps like theirs
            (:class:`convattn.ops._prepared.Prepared`). None: there is nothing to prepare.
    """

    run: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    not_supported_reasons: Callable[..., list[str]] = lambda inputs=None: []
    prepare: Callable[..., Callable[[Tensor], Tensor]] | None = None


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
        op: {**{name: one.not_supported_reasons() for name, one in named.items()}, PORTABLE: []}
        for op, named in _backends.items()
    }


@dataclass
class BackendUse:
    """What became of the wish for one backend (:func:`backend`).

    Args:
        name: the backend's.
        ops: the operators that ran on it.
        refusals: why others did not, each with its operator.
    """

    name: str
    ops: set[str] = field(default_factory=set)
    refusals: dict[str, None] = field(default_factory=dict)


_wanted: BackendUse | None = None


@contextmanager
def backend(name: str) -> Iterator[BackendUse]:
    """Every operator called under it runs on the backend of that name; where that cannot serve, on ``"eager"``.

    It also holds for the gradients of what was computed under it, whenever they are computed. It is one setting for
    the process, as those of ``torch.backends`` are, and not one for each thread. An operator called with a
    ``backend`` of its own keeps that.

    Args:
        name: ``"native"``, ``"triton"``, ``"eager"``, or ``"portable"``: standard operators of torch alone, which
            exporters can read and which torch differentiates by itself.

    Yields:
        Which operators ran on it, and why others did not.

    Raises:
        ValueError: no operator has a backend of that name.

    Example:
        >>> import torch
        >>> import convattn
        >>> layer, x = convattn.ACmix(16, 16), torch.randn(1, 16, 6, 6)
        >>> with convattn.ops.backend("eager") as use:
        ...     y = layer(x)
        >>> sorted(use.ops), bool(torch.allclose(y, layer(x), atol=1e-5))
        (['attend'], True)
    """
    global _wanted
    known = {PORTABLE: None} | {key: None for named in _backends.values() for key in named}
    if name not in known:
        raise ValueError(f"no operator has a backend {name!r}; there are {', '.join(map(repr, reversed(known)))}")
    before, _wanted = _wanted, BackendUse(name)
    try:
        yield _wanted
    finally:
        _wanted = before


def chosen(op: str, name: str, inputs: Any) -> str:
    """The backend asked for; under :func:`backend`, what ``"auto"`` means."""
    if _wanted is None or name not in ("auto", _wanted.name):
        return name
    wanted = _wanted.name
    reasons = reasons_against(wanted, op, inputs)
    if not reasons:
        _wanted.ops.add(op)
        return wanted
    _wanted.refusals[f"{op}: {'; '.join(reasons)}"] = None
    return "eager" if name == "auto" else name


def reasons_against(backend: str, op: str, inputs: Any) -> list[str]:
    """Why a backend cannot run ``op`` on these inputs; empty when it can."""
    named = _backends[op]
    return named[backend].not_supported_reasons(inputs) if backend in named else [f"there is no backend {backend!r}"]


def is_portable_wanted() -> bool:
    """Whether :func:`backend` asks for standard operators."""
    return _wanted is not None and _wanted.name == PORTABLE


def is_wanted(name: str) -> bool:
    """Whether ``"auto"`` may choose that backend: under :func:`backend` only the one of its name, or eager."""
    return _wanted is None or name in (_wanted.name, "eager")


def select(op: str, name: str, inputs: Any) -> Backend:
    """The implementation called ``name``, or under ``"auto"`` the first that can run on these inputs.

    Raises:
        ValueError: no backend of that name, or the one named cannot run; the message gives its reasons.
    """
    named = _backends[op]
    if name == "auto":
        for key, found in named.items():
            if is_wanted(key) and not found.not_supported_reasons(inputs):
                return found
    if name not in named:
        raise ValueError(f"{op} has no backend {name!r}; it has 'auto', {', '.join(map(repr, [*named, PORTABLE]))}")
    reasons = named[name].not_supported_reasons(inputs)
    if reasons:
        raise ValueError(f"backend {name!r} of {op} cannot run here: {'; '.join(reasons)}")
    return named[name]


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


def native_offset_reasons(inputs: Any = None) -> list[str]:
    """The same as :func:`native_reasons`, for the kernels over any set of offsets."""
    if inputs is None:
        return native_reasons()
    reasons = native_reasons(inputs.map, *inputs.tensors)
    if max(inputs.output_shape) >= LARGEST_SIZE:
        reasons.append(f"takes sizes below {LARGEST_SIZE}, got {list(inputs.output_shape)}")
    far = max(inputs.nbhd.farthest, *inputs.nbhd.stride)
    if far > FARTHEST_OFFSET:
        reasons.append(f"takes offsets and strides of at most {FARTHEST_OFFSET} pixels, got {far}")
    return reasons


def register_products(op: str, native: Callable[..., Tensor], triton: Callable[..., Tensor], eager: Any) -> None:
    """The three implementations of a product over a neighbourhood, which take its inputs one by one."""
    for name, run, reasons in (
        ("native", native, native_offset_reasons),
        ("triton", triton, triton_reasons),
        ("eager", eager, lambda inputs=None: []),
    ):
        register_backend(op, name, Backend(lambda inputs, run=run: run(*inputs), None, reasons))


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def triton_reasons(inputs: Any = None) -> list[str]:
    """Why the GPU kernels cannot run on this machine or on these inputs; empty when they can.

    Under ``TRITON_INTERPRET=1``, set before Python starts, Triton runs kernels on the CPU, slowly: for tests.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons = []
    if not interpreted and not torch.cuda.is_available():
        reasons.append("needs an NVIDIA or AMD GPU; torch finds none")
    if not _is_installed("triton"):
        reasons.append("needs the package triton, which is not installed; pip install triton")
    for x in () if inputs is None else (inputs if isinstance(inputs, Tensor) else inputs.map,):
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
    """Whether an operator without gradients may call its implementation past torch's dispatcher."""
    return not torch.is_grad_enabled() and is_unwatched(*tensors)


def is_unwatched(*tensors: Tensor | None) -> bool:
    """Whether nobody can tell that an operator goes past torch's dispatcher, which costs as much as a small layer.

    Nothing is traced, transformed or watched then. Torch says some of that by private functions alone; of those that
    this module calls none has a public one.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or needs_standard_operators()
        or torch._C._autograd._profiler_enabled()
        or not _PLAIN.issuperset(map(type, tensors))
        or (tensors[0] is not None and tensors[0].is_meta)
        or any(x is not None and torch._C._functorch.is_legacy_batchedtensor(x) for x in tensors)
    )


def is_undisturbed(*tensors: Tensor | None) -> bool:
    """Whether an operator runs directly (:func:`runs_directly`) and nobody asks for another dtype or backend."""
    return _wanted is None and not torch._C._is_any_autocast_enabled() and runs_directly(*tensors)


def torch_state() -> tuple[object, ...]:
    """What :func:`is_undisturbed` asks, as torch holds it: two that are equal have the same answer for plain tensors.

    Autocast, tracing, modes and transforms all add keys to the sets by which torch dispatches.
    """
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr(),
        torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        torch.is_grad_enabled(),
        torch._C._autograd._profiler_enabled(),
        forward_ad._current_level,
        _wanted,
    )


def needs_standard_operators() -> bool:
    """Whether somebody is at work who knows standard operators only.

    ONNX and TorchScript have none of ours. For ``torch.func``'s transforms and forward-mode differentiation an
    operator defined in Python has no rules: torch would leave tangents out.
    """
    return bool(
        torch.onnx.is_in_onnx_export()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def refuse_forward_mode(op: str) -> None:
    """What torch's operator cannot do, and torch does not notice.

    Raises:
        NotImplementedError: forward-mode differentiation is at work.
    """
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"torch.ops.convattn.{op} has no forward-mode derivative; call convattn.ops, which has one"
        )


_onednn = torch.backends.mkldnn.is_available()


def pointwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, through oneDNN where it is large: on one thread torch prefers a form three times slower."""
    large = x.numel() > 20_000 and torch.get_num_threads() == 1
    if _onednn and large and x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.mkldnn_convolution(x, weight, bias, [0, 0], [1, 1], [1, 1], 1)
    return torch.nn.functional.conv2d(x, weight, bias)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """``F.scaled_dot_product_attention``, in forward mode by the one of its kernels that has a rule for it."""
    if forward_ad._current_level >= 0:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)


def triton_takes_tiles() -> bool:
    """Whether kernels on tiles, sized for an NVIDIA GPU's shared memory, fit the GPU: AMD's has less."""
    return torch.version.hip is None


def is_capturing_a_graph() -> bool:
    """Whether a CUDA graph is being captured, which will read at every replay what kernels are given now."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors in the dtype that ``torch.autocast`` asks for, as a convolution's would be; float64 stays."""
    dtype = _autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def is_autocast(x: Tensor) -> bool:
    """Whether ``torch.autocast`` is on where a map is."""
    return _autocast_dtype(x) is not None


def is_autocast_to(dtype: torch.dtype, x: Tensor) -> bool:
    """Whether ``torch.autocast`` made a map what it is, of that dtype."""
    return x.dtype == dtype and _autocast_dtype(x) == dtype


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    if not torch._C._is_any_autocast_enabled():
        return None
    device_type = x.device.type
    enabled = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None


def working_set_bytes(device: torch.device) -> int:
    """How much a tile-wise loop may hold at once: about a core's cache on a CPU, enough to fill a GPU."""
    return 4 << 20 if device.type == "cpu" else 512 << 20


def cores_of(device: torch.device) -> int:
    """How many working sets are worked on at a time: one a thread on a CPU; a GPU's is sized for all of it."""
    return torch.get_num_threads() if device.type == "cpu" else 1
