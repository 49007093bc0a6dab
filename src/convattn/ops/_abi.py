"""Tensors and neighbourhoods as the structures of ``csrc/convattn.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from typing import overload

import torch
from torch import Tensor

from convattn.ops._layout import channels_last
from convattn.ops._native import library
from convattn.ops.neighborhood import BORDERS, Neighborhood

_NO_MEMORY = "{} had not enough memory; give it fewer images or a smaller map at a time"
_WINDOWS = {Neighborhood.window(size).flat_offsets: size for size in (3, 5, 7)}


class Map(ctypes.Structure):
    """``ConvattnMap``: where a float32 ``[B, C, H, W]`` lies."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("image", ctypes.c_int64),
        ("channel", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
    )


class Window(ctypes.Structure):
    """``ConvattnWindow``."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "height", "width", "heads", "head_dim", "stride", "relu")),
        ("threads", ctypes.c_int32),
        ("softmax_scale", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("size", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("packed", ctypes.c_int32),
    )


TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""``type`` of a :class:`Window`."""


class Offsets(ctypes.Structure):
    """``ConvattnOffsets``."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("batch", "channels", "heads", "height", "width", "out_height", "out_width")
        ),
        *((name, ctypes.c_int32) for name in ("taps", "stride_y", "stride_x", "border", "threads")),
        ("offsets", ctypes.c_void_p),
        ("softmax_scale", ctypes.c_float),
    )


class GroupConv(ctypes.Structure):
    """``ConvattnGroupConv``."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in ("batch", "height", "width", "groups", "inputs", "outputs", "stride", "threads")
    )


class OffsetConv(ctypes.Structure):
    """``ConvattnOffsetConv``."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "inputs", "blocks", "block_outputs", "height", "width")),
        *((name, ctypes.c_int32) for name in ("out_height", "out_width", "taps", "stride_y", "stride_x", "border")),
        ("threads", ctypes.c_int32),
        ("offsets", ctypes.c_void_p),
    )


def address_of(x: Tensor) -> int:
    """Where a tensor's numbers lie, for a kernel to read or write; the tensor must outlive it.

    Raises:
        ValueError: there are none in the CPU's memory.
    """
    address = x.data_ptr() if x.is_cpu else 0
    if not address and x.numel():
        raise ValueError(
            f"a kernel needs numbers in the CPU's memory, got a tensor {list(x.shape)} on {x.device} without; load or "
            "gather it first"
        )
    return address


def map_of(x: Tensor) -> Map:
    """The structure of a float32 map; the tensor must outlive it."""
    return Map(address_of(x), *x.stride())


def float_map(x: Tensor) -> Tensor:
    """A map in float32 whose channels lie next to each other."""
    return channels_last(x.float())


@overload
def float_table(x: Tensor) -> Tensor: ...
@overload
def float_table(x: None) -> None: ...
def float_table(x: Tensor | None) -> Tensor | None:
    """A table in float32, its numbers in order; None where there is none."""
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return x
    return x.float().contiguous()


@lru_cache(maxsize=256)
def _offsets_of(nbhd: Neighborhood) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * (2 * len(nbhd)))(*nbhd.flat_offsets)


def _geometry(nbhd: Neighborhood, size: tuple[int, int]) -> tuple[int | ctypes.c_void_p, ...]:
    """The fields of both structures from the map's size to its offsets."""
    taken = (*size, *nbhd.output_size(*size), len(nbhd), *nbhd.stride, BORDERS.index(nbhd.border))
    return (*taken, torch.get_num_threads(), ctypes.cast(_offsets_of(nbhd), ctypes.c_void_p))


def geometry_of(k: Tensor, nbhd: Neighborhood, num_heads: int, scale: float = 1.0) -> Offsets:
    """The geometry of a neighbourhood on a map."""
    batch, channels, height, width = k.shape
    return offsets_of(nbhd, batch, channels, num_heads, (height, width), scale)


def offsets_of(
    nbhd: Neighborhood, batch: int, channels: int, num_heads: int, size: tuple[int, int], scale: float = 1.0
) -> Offsets:
    """The geometry of a neighbourhood on a map of ``size``."""
    return Offsets(batch, channels, num_heads, *_geometry(nbhd, size), scale)


def offset_conv_of(nbhd: Neighborhood, x: Tensor, weight: Tensor) -> OffsetConv:
    """The geometry of a convolution over a neighbourhood with weights ``[G, D * C, V]``."""
    batch, channels, height, width = x.shape
    return OffsetConv(batch, channels, weight.shape[0], weight.shape[2], *_geometry(nbhd, (height, width)))


def fast_window(nbhd: Neighborhood, head_dim: int) -> int:
    """The size of a window that has kernels of its own, else 0; their vectors of channels are of 4 at least."""
    strided = nbhd.stride in ((1, 1), (2, 2)) and nbhd.border == "reflect"
    return _WINDOWS.get(nbhd.flat_offsets, 0) if head_dim >= 4 and strided else 0


@cache
def kernel(function: str, addresses: int) -> Callable[..., None]:
    """A kernel as a function of that many addresses: whole numbers, structures by reference, or None for null."""
    run = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * addresses)((function, library()))

    def checked(*arguments: object) -> None:
        if run(*arguments):
            raise MemoryError(_NO_MEMORY.format(function))

    return checked


def call(function: str, *arguments: ctypes.Structure | Tensor | float | None) -> None:
    """Call a kernel: structures by reference, tensors by address, None as null.

    Raises:
        MemoryError: there was not enough memory.
    """
    if getattr(library(), function)(*map(_as_argument, arguments)):
        raise MemoryError(_NO_MEMORY.format(function))


def _as_argument(value: ctypes.Structure | Tensor | float | None) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(address_of(value))
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_float(value)
