"""Programs recorded for others: whether one is, for which sizes, and as which operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

Recorder: TypeAlias = Callable[[str, Any, Callable[[], Tensor]], "Tensor | None"]
"""An operator's name, its inputs and how to compute it -> its output as it is recorded; None: not recorded."""

_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Ask whether an operator is recorded as one, where else standard operators would be."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def is_recording() -> bool:
    """Whether :func:`recording` asks for operators of ours where a kernel serves them."""
    return _recorder is not None


def recorded(op: str, inputs: Any, run: Callable[[], Tensor]) -> Tensor | None:
    """What :func:`recording`'s recorder makes of an operator; None without one."""
    return None if _recorder is None else _recorder(op, inputs, run)


def is_exporting() -> bool:
    """Whether a program is recorded for others."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


_sizes_are_fixed = False


@contextmanager
def fixed_sizes() -> Iterator[None]:
    """What ``torch.jit.trace`` records under it serves maps of the example's size alone.

    Then index tables are constants of the program, and an implementation may choose by the size.
    """
    global _sizes_are_fixed
    before, _sizes_are_fixed = _sizes_are_fixed, True
    try:
        yield
    finally:
        _sizes_are_fixed = before


def are_sizes_free() -> bool:
    """Whether a program for inputs of any size is recorded: a condition on a size would tie it to the example's."""
    return is_exporting() and not _sizes_are_fixed


def size_of(x: Tensor, dim: int) -> Any:
    """A size: a number, or in a program for any size symbolic, under ``torch.jit.trace`` a tensor."""
    return int(x.shape[dim]) if _sizes_are_fixed else x.shape[dim]


def output_sizes(shape: tuple[Any, ...]) -> list[int | None]:
    """What a recorded program may say of an output ``[B, ..., H, W]``: None for a size that is free in it."""
    of_map = [int(size) if _sizes_are_fixed else None for size in shape[-2:]]
    return [None, *map(int, shape[1:-2]), *of_map]


def map_size(x: Tensor) -> tuple[Any, Any]:
    """H and W, see :func:`size_of`."""
    return size_of(x, 2), size_of(x, 3)
