"""Argument checks that the operators share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from convattn.ops.neighborhood import Neighborhood, as_pair


def check_map(name: str, x: Tensor) -> None:
    """A floating-point ``[B, C, H, W]`` map of at least one channel and one pixel."""
    if x.dim() != 4:
        raise ValueError(f"{name} must be [B, C, H, W], got {x.dim()} dimensions: {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{name} must have at least one pixel, got H={x.shape[2]}, W={x.shape[3]}")
    if x.shape[1] < 1:
        raise ValueError(f"{name} must have at least one channel, got {list(x.shape)}")


def check_table(name: str, table: Tensor | None, x: Tensor, *shapes: tuple[int, ...], holds: str = "") -> None:
    """What belongs to a map ``x``, if it is there: of one of these shapes, floating point, on the same device.

    ``holds`` says in the message what its numbers are.
    """
    if table is None:
        return
    if table.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{name} must be {expected}{holds and ', '}{holds}, got {list(table.shape)}")
    if not table.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {table.dtype}")
    if not (table.is_cpu and x.is_cpu) and table.device != x.device:
        raise ValueError(f"{name} must be on {x.device} as the map is, got {table.device}; move it with .to(...)")


def check_stored(*tensors: Tensor | None) -> None:
    """Tensors whose numbers are in memory: sharding and offloading leave tensors behind whose storage they freed."""
    for x in tensors:
        if x is None or x.untyped_storage().nbytes() >= x.nbytes:
            continue
        stored = x.untyped_storage().nbytes() // x.element_size()
        reach = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
        if stored < x.storage_offset() + reach:
            raise ValueError(
                f"a tensor {list(x.shape)} spans {reach} numbers in memory, its storage holds {stored}; gather or load "
                "it before the operator runs"
            )


def check_gradient(grad: Tensor, x: Tensor, shape: Sequence[int]) -> None:
    """The gradient of an output of that shape, in the dtype and on the device of the map ``x``."""
    check_table("grad", grad, x, tuple(shape))
    check_same("grad", grad, "the map", x)


def check_same(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Two tensors of one dtype on one device."""
    if a.dtype != b.dtype:
        raise ValueError(
            f"{first} and {second} must have one dtype, got {a.dtype} and {b.dtype}; convert one with .to(...)"
        )
    if a.device != b.device:
        raise ValueError(
            f"{first} and {second} must be on one device, got {a.device} and {b.device}; move one with .to(...)"
        )


def check_heads(channels: int, num_heads: int) -> None:
    """Channels that divide into heads."""
    if num_heads < 1 or channels % num_heads:
        fitting = [n for n in range(1, min(channels, 64) + 1) if channels % n == 0]
        raise ValueError(f"num_heads must divide the {channels} channels, got {num_heads}; {fitting} would do")


def check_output_map(name: str, x: Tensor, nbhd: Neighborhood, height: int, width: int) -> None:
    """A map at the output resolution of a neighbourhood on an ``H`` by ``W`` map."""
    expected = nbhd.output_size(height, width)
    if tuple(x.shape[-2:]) != expected:
        raise ValueError(
            f"{name} must measure {expected[0]}x{expected[1]}, the output of a {height}x{width} map at stride "
            f"{nbhd.stride}, got {x.shape[-2]}x{x.shape[-1]}; subsample it with [..., ::stride, ::stride]"
        )


def check_queries(q: Tensor, k: Tensor, nbhd: Neighborhood, num_heads: int) -> None:
    """Queries at the output resolution of a neighbourhood on the map of the keys, both divided into heads."""
    check_map("q", q)
    check_map("k", k)
    check_same("q", q, "k", k)
    check_heads(k.shape[1], num_heads)
    check_output_map("q", q, nbhd, k.shape[2], k.shape[3])
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(f"q and k must have the same batch and channels, got {list(q.shape)} and {list(k.shape)}")


def check_weights(weights: Tensor, x: Tensor, nbhd: Neighborhood) -> None:
    """Weights ``[B, N, K, Ho, Wo]`` that fit a map and a neighbourhood."""
    if weights.dim() != 5 or weights.shape[2] != len(nbhd) or weights.shape[0] != x.shape[0]:
        raise ValueError(
            f"weights must be [B, N, K, Ho, Wo] with B={x.shape[0]} and K={len(nbhd)} offsets, "
            f"got {list(weights.shape)}"
        )
    check_heads(x.shape[1], weights.shape[1])


def flat(nbhd: Neighborhood) -> tuple[list[int], list[int], str]:
    """A neighbourhood as the plain arguments that a torch operator's schema allows."""
    return list(nbhd.flat_offsets), list(nbhd.stride), nbhd.border


def unflat(offsets: Sequence[int], stride: Sequence[int], border: str) -> Neighborhood:
    """The inverse of :func:`flat`."""
    return _unflat(tuple(offsets), tuple(stride), border)


@lru_cache(maxsize=256)
def _unflat(offsets: tuple[int, ...], stride: tuple[int, ...], border: str) -> Neighborhood:
    if len(offsets) % 2:
        raise ValueError(f"offsets must be pairs dy, dx one after the other, got {len(offsets)} numbers")
    pairs = tuple(zip(offsets[::2], offsets[1::2], strict=True))
    return Neighborhood(pairs, as_pair(stride, "stride"), border)  # type: ignore[arg-type]
