"""The rates of this machine: bytes a second in a large copy, products a second in a large convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import Series
from benchmarks.timing import clock_for

REPEATS = 7


@torch.inference_mode()
def bandwidth(device: str) -> Series:
    """Bytes a second of a copy that no cache holds, those read and those written."""
    megabytes = 128 if device == "cpu" else 2048
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.ones_like(source)
    clock, moved = clock_for(device), 2 * source.nbytes
    return Series("B/s", tuple(moved / clock.seconds(lambda: target.copy_(source), 1) for _ in range(REPEATS)))


@torch.inference_mode()
def peak(device: str, dtype: torch.dtype, *, channels: int = 512, size: int = 28) -> Series:
    """Floating-point operations a second of the fastest of a 1x1 and a 3x3 convolution and a matrix product."""
    images = 8 if device == "cpu" else 128
    x = torch.randn(images, channels, size, size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    kernels = [torch.randn(channels, channels, k, k, device=device, dtype=dtype) for k in (1, 3)]
    kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]
    rows, square = x.permute(0, 2, 3, 1).reshape(-1, channels), kernels[0].flatten(1)
    products = 2 * channels**2 * len(rows)
    runs: list[tuple[Callable[[], Tensor], int]] = [
        (lambda: F.conv2d(x, kernels[0]), products),
        (lambda: F.conv2d(x, kernels[1], padding=1), 9 * products),
        (lambda: rows @ square, products),
    ]
    clock, found = clock_for(device), []
    for run, flops in runs:
        run()
        found.append(Series("FLOP/s", tuple(flops / clock.seconds(run, 1) for _ in range(REPEATS))))
    return max(found, key=lambda series: series.range[1])
