"""Dtypes and memory layouts that the operators work in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums run: float32 for the half types, else the tensor's own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def memory_format_of(x: Tensor) -> torch.memory_format:
    """``channels_last`` for a map whose channels lie next to each other (a slice of one too), else contiguous."""
    if x.stride(1) == 1 and x.stride(3) >= x.shape[1] > 1:
        return torch.channels_last
    return torch.contiguous_format


def convolution_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which torch's convolution gets a map: float32 for bfloat16 on a CPU, else the map's own.

    In bfloat16 on a CPU torch finds wrong outputs and gradients of maps of few columns, of channels_last maps and of
    permuted kernels, up to 1e18 off.
    """
    return torch.float32 if x.is_cpu and x.dtype == torch.bfloat16 else x.dtype


def channels_last(x: Tensor) -> Tensor:
    """A map whose channels lie next to each other: ``x`` itself, also a slice of a wider map, or a copy."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty map with the dtype and device of another."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
