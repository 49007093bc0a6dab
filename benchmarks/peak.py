"""The most memory that something needs at once, over what was there before."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def trim_memory() -> bool:
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


def growth(run: Callable[[], object], device: str = "cpu") -> int:
    """By how many bytes the peak rises over what is held now, while this runs.

    Run it once before on another input or, where :func:`trim_memory` works, on the same: what the libraries load and
    set up once is not its own.

    Example:
        >>> growth(lambda: bytearray(b"x") * (32 << 20)) > 30 << 20
        True
    """
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - held)
    trim_memory()
    before = count_from_here()
    run()
    return max(0, peak_bytes() - before)
