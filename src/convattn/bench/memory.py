"""Memory of one layer's forward and backward pass, each measurement in a process of its own.

Run as a program it measures one layer and writes what it found to its standard output as JSON; :func:`measure` runs
it so, several times for every layer.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from convattn.bench.machine import environment
from convattn.bench.record import Record, Series
from convattn.bench.unfold import UnfoldACmix
from convattn.layers import ACmix

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "Conv2d 3x3": lambda channels: nn.Conv2d(channels, channels, 3, padding=1),
    "ACmix": lambda channels: ACmix(channels, channels),
    "ACmix by unfold": lambda channels: UnfoldACmix(channels, channels),
}
PEAK, KEPT = "peak growth", "kept for backward"


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


def hand_back() -> bool:
    """Give freed memory back to the system, so that it counts when it is used again; False where that cannot be had."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return True


def count_from_here() -> int:
    """What :func:`peak_bytes` is to be compared with later.

    Where the system can forget the peak, and the imports had one of their own, it is what is in RAM now; elsewhere it
    is the peak until now.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that this process had in RAM since :func:`count_from_here`, or since its start."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def measure_here(layer: str, case: MemoryCase) -> dict[str, int]:
    """Measure one layer in this process, which should be fresh: growth over what was resident right before."""
    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    dtype: torch.dtype = getattr(torch, case.dtype)
    module = LAYERS[layer](case.channels).to(dtype)
    shape = (case.batch, case.channels, case.height, case.width)
    x, grad = _leaf_and_gradient(shape if hand_back() else (1, case.channels, 8, 8), dtype)
    module(x).backward(grad)  # what the libraries load and set up once is not the layer's
    module.zero_grad()
    x, grad = _leaf_and_gradient(shape, dtype)
    hand_back()
    before = count_from_here()
    module(x).backward(grad)
    growth = max(0, peak_bytes() - before)
    return {PEAK: growth, KEPT: bytes_kept(module, x)}


def _leaf_and_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)


def measure(case: MemoryCase, *, layers: tuple[str, ...] = tuple(LAYERS), processes: int = 5) -> Record:
    """Measure every layer in fresh processes, one at a time, the layers in turn.

    Raises:
        ValueError: fewer than one process, or a layer that is not in ``LAYERS``.
        RuntimeError: a measuring process failed; its own message is passed on.
    """
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or processes < 1:
        raise ValueError(f"layers must be among {list(LAYERS)} and processes at least 1, got {layers}, {processes}")
    where = environment(case.threads)
    taken = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    found: dict[str, list[dict[str, int]]] = {layer: [] for layer in layers}
    for _ in range(processes):
        for layer, runs in found.items():
            runs.append(_in_fresh_process(layer, case))
    results = {
        layer: {name: Series("bytes", tuple(run[name] for run in runs)) for name in (PEAK, KEPT)}
        for layer, runs in found.items()
    }
    return Record("memory", taken, where, asdict(case) | {"processes": processes}, results)


def _in_fresh_process(layer: str, case: MemoryCase) -> dict[str, int]:
    command = [sys.executable, "-m", "convattn.bench.memory", json.dumps({"layer": layer, "case": asdict(case)})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring {layer!r} failed with code {done.returncode}:\n{done.stderr.strip()}")
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(measure_here(asked["layer"], MemoryCase(**asked["case"]))) + "\n")
