"""Memory of one layer's forward and backward pass, each measurement in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from benchmarks.machine import environment, now
from benchmarks.peak import growth, trim_memory
from benchmarks.record import PEAK, Record, Series
from benchmarks.run import rounds_of
from benchmarks.unfold import UnfoldACmix
from convattn.layers import ACmix

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "Conv2d 3x3": lambda channels: nn.Conv2d(channels, channels, 3, padding=1),
    "ACmix": lambda channels: ACmix(channels, channels),
    "ACmix by unfold": lambda channels: UnfoldACmix(channels, channels),
}
KEPT = "kept for backward"


@dataclass(frozen=True)
class MemoryCase:
    """The map that a layer is given.

    Args:
        batch: B.
        channels: C, in and out.
        height: H.
        width: W.
        dtype: a floating-point dtype of torch, by name.
        threads: torch's threads.
    """

    batch: int = 8
    channels: int = 64
    height: int = 56
    width: int = 56
    dtype: str = "float32"
    threads: int = 1


def bytes_kept(layer: nn.Module, x: Tensor) -> int:
    """Memory that autograd keeps between forward and backward: every storage once, parameters left out.

    Example:
        >>> bytes_kept(nn.Conv2d(4, 4, 3), torch.zeros(1, 4, 5, 5)) == 4 * 5 * 5 * 4
        True
    """
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(x)  # alive while counting, so that no storage is freed and its address used again
    del out
    return sum(kept.values())


def measure_here(layer: str, case: dict[str, int | str], on_progress: OnProgress = silent) -> dict[str, int]:
    """Measure one layer in this process, which should be fresh: growth over what was resident right before."""
    sizes = MemoryCase(**case)  # type: ignore[arg-type]
    dtype: torch.dtype = getattr(torch, sizes.dtype)
    module = LAYERS[layer](sizes.channels).to(dtype)
    shape = (sizes.batch, sizes.channels, sizes.height, sizes.width)
    x, grad = _leaf_and_gradient(shape if trim_memory() else (1, sizes.channels, 8, 8), dtype)
    module(x).backward(grad)  # what the libraries load and set up once is not the layer's
    module.zero_grad()
    x, grad = _leaf_and_gradient(shape, dtype)
    return {PEAK: growth(lambda: module(x).backward(grad)), KEPT: bytes_kept(module, x)}


def _leaf_and_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)


def measure(
    case: MemoryCase, *, layers: tuple[str, ...] = tuple(LAYERS), processes: int = 5, on_progress: OnProgress = silent
) -> Record:
    """Measure every layer in fresh processes, one at a time, the layers in turn.

    Raises:
        ValueError: fewer than one process, or a layer that is not in ``LAYERS``.
        RuntimeError: a measuring process failed; its own message is passed on.
    """
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or processes < 1:
        raise ValueError(f"layers must be among {list(LAYERS)} and processes at least 1, got {layers}, {processes}")
    where, taken = environment(case.threads), now()
    found: dict[str, list[dict[str, int]]] = {layer: [] for layer in layers}
    for _, layer in rounds_of(processes, layers, on_progress):
        arguments = {"layer": layer, "case": asdict(case)}
        found[layer].append(call_fresh(measure_here, arguments, Process(case.threads)))
    results = {
        layer: {name: Series("bytes", tuple(run[name] for run in runs)) for name in (PEAK, KEPT)}
        for layer, runs in found.items()
    }
    return Record("memory", taken, where, asdict(case) | {"processes": processes}, results)
