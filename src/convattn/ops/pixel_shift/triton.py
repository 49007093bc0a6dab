"""``pixel_shift_attention`` on a GPU: one kernel forward, two for the gradients; the kernels say how.

Both passes keep nothing but the inputs and use no atomics: results repeat bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import FUSED_MULTIPLY_ADD, Tables, map_strides, next_power_of_two, tables
from convattn.ops.pixel_shift import eager
from convattn.ops.pixel_shift.inputs import PixelShiftInputs

MOST_CHANNELS = 1024  # of a head, that a program holds at once
FORWARD_BYTES, BACKWARD_BYTES = 64, 32  # of a map, that a thread holds; more registers halve the programs that run
THREADS = 256


@dataclass(frozen=True)
class _Launch:
    """What the kernels over the pixels of a map of one size are launched with."""

    grid: tuple[int]
    counts: tuple[int, int, int]
    constants: dict[str, int]

    @classmethod
    def of(cls, x: PixelShiftInputs, size: tuple[int, int], bytes_of_a_thread: int) -> _Launch:
        """Adjacent heads fill cache lines; a program as large as may be reads its pixels' neighbours from its cache."""
        head_dim, pixels = x.k.shape[1] // x.num_heads, size[0] * size[1]
        channels = next_power_of_two(head_dim)
        heads = min(next_power_of_two(x.num_heads), max(1, 64 // channels))
        numbers = bytes_of_a_thread // x.k.element_size()
        threads = THREADS if x.nbhd.border == "zeros" else THREADS // 2  # index tables take more registers
        together = min(threads * numbers // (channels * heads), 256, max(16, next_power_of_two(pixels)))
        blocks, tiles = -(-x.num_heads // heads), -(-pixels // together)
        constants = {
            "D": head_dim,
            "CP": channels,
            "PIXELS": together,
            "HEADS": heads,
            "HAS_VALUES": x.v is not None,
            "HAS_BIAS": x.bias is not None,
            "ZEROS": x.nbhd.border == "zeros",
            "num_warps": max(1, min(threads, together * heads * channels // numbers) // 32),
            **FUSED_MULTIPLY_ADD,
        }
        return cls((x.k.shape[0] * blocks * tiles,), (x.num_heads, blocks, tiles), constants)


def pixel_shift_attention(x: PixelShiftInputs) -> Tensor:
    """See :func:`convattn.ops.pixel_shift_attention`."""
    from convattn.ops.pixel_shift.triton_kernels import forward_kernel

    if x.q.numel() == 0:
        return torch.empty_like(x.q)
    if x.k.shape[1] // x.num_heads > MOST_CHANNELS:
        return eager.pixel_shift_attention(x)
    (out_h, out_w), out = x.q.shape[-2:], empty_channels_last(x.q.shape, x.q)
    launch, t = _Launch.of(x, (out_h, out_w), FORWARD_BYTES if x.nbhd.border == "zeros" else BACKWARD_BYTES), _tables(x)
    q, k, v = _maps(x)
    with torch.cuda.device_of(x.q):
        forward_kernel[launch.grid](
            *(q, k, v, *_parameters(x), out, *t.gathered),
            *(stride for m in (q, k, v, out) for stride in map_strides(m)),
            *(*launch.counts, out_h, out_w, *x.k.shape[-2:], *_before(x), len(x.nbhd), *x.nbhd.stride, x.scale),
            **launch.constants,
        )
    return out


def pixel_shift_attention_backward(grad: Tensor, x: PixelShiftInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`PixelShiftInputs.tensors`."""
    if x.q.numel() == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in x.tensors)
    if x.k.shape[1] // x.num_heads > MOST_CHANNELS:
        return eager.pixel_shift_attention_backward(grad, x)
    with torch.cuda.device_of(x.q):
        return _gradients(channels_last(grad), x)


def _gradients(grad: Tensor, x: PixelShiftInputs) -> tuple[Tensor | None, ...]:
    from convattn.ops.pixel_shift.triton_kernels import key_kernel, query_kernel

    (height, width), (out_h, out_w), t = x.k.shape[-2:], x.q.shape[-2:], _tables(x)
    q, k, v = _maps(x)
    dq, dk = empty_channels_last(q.shape, q), empty_channels_last(k.shape, k)
    dv = None if x.v is None else torch.empty_like(dk)
    read = [stride for m in (q, k, v, grad) for stride in map_strides(m)]
    launch = _Launch.of(x, (out_h, out_w), BACKWARD_BYTES)
    parts = x.q.shape[0] * launch.counts[2]
    dweight = x.q.new_empty((parts, *x.weight.shape), dtype=torch.float32)
    dbias = None if x.bias is None else x.q.new_empty((parts, *x.bias.shape), dtype=torch.float32)
    query_kernel[launch.grid](
        *(q, k, v, *_parameters(x), grad, dq, dweight, dweight if dbias is None else dbias, *t.gathered),
        *(*read, *map_strides(dq)),
        *(*launch.counts, out_h, out_w, *x.k.shape[-2:], *_before(x), len(x.nbhd), *x.nbhd.stride, x.scale),
        **launch.constants,
    )
    launch = _Launch.of(x, (height, width), BACKWARD_BYTES)
    key_kernel[launch.grid](
        *(q, k, v, *_parameters(x), grad, dk, dk if dv is None else dv, *t.scattered),
        *(*read, *map_strides(dk)),
        *(*launch.counts, height, width, out_h, out_w, *_before(x), len(x.nbhd), *x.nbhd.stride, *t.folds, x.scale),
        **launch.constants,
    )
    summed = (None if d is None else d.sum(0, dtype=torch.float64) for d in (dweight, dbias))
    return dq, dk, dv, *summed


def _maps(x: PixelShiftInputs) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with their channels next to each other; k in place of a v that is not there, which no kernel reads."""
    q, k = channels_last(x.q), channels_last(x.k)
    return q, k, k if x.v is None else channels_last(x.v)


def _parameters(x: PixelShiftInputs) -> tuple[Tensor, Tensor]:
    """Weight and bias; the weight in place of a bias that is not there, which no kernel reads."""
    weight = x.weight.contiguous()
    return weight, weight if x.bias is None else x.bias.contiguous()


def _tables(x: PixelShiftInputs) -> Tables:
    return tables(x.nbhd, (x.k.shape[2], x.k.shape[3]), x.k.device)


def _before(x: PixelShiftInputs) -> tuple[int, int]:
    """How far the offsets reach up and to the left of the map."""
    return x.nbhd.reach(0)[0], x.nbhd.reach(1)[0]
