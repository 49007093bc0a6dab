"""Dtypes and memory layouts that the operators work in."""

from __future__ import annotations

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


def in_order(x: Tensor) -> Tensor:
    """In bfloat16 on a CPU ``x`` contiguous, also what the strides say of dimensions of size 1; else as it is.

    Of a channels_last map or kernel of few columns, torch's convolution in bfloat16 finds wrong outputs and gradients
    there; strides of 1 along a single row, column or channel are enough for that.
    """
    return x.contiguous().flatten().view(x.shape) if x.is_cpu and x.dtype == torch.bfloat16 else x
