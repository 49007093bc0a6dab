"""``attend`` on a GPU: tiles of products for odd square windows, else offset by offset; the kernels say how.

Both keep nothing but the inputs between forward and backward, and use no atomics: results repeat bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops._dispatch import triton_takes_tiles
from convattn.ops._layout import channels_last, empty_channels_last
from convattn.ops._triton import FUSED_MULTIPLY_ADD, Tables, kept_on_gpu, map_strides, next_power_of_two, tables
from convattn.ops.attend import offsets
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.triton_tiles import Kind, Work, choose_tile
from convattn.ops.neighborhood import Neighborhood

Gradients = tuple[Tensor | None, ...]

MOST_CHANNELS = 128  # of a head, that a program holds at once


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    if x.q.numel() == 0:
        return torch.empty_like(x.q)
    if _head_dim(x) > MOST_CHANNELS:
        return offsets.attend(x)
    with torch.cuda.device_of(x.q):
        return window_forward(x) if window_radius(x) else _offsets_forward(x)


def attend_backward(grad: Tensor, x: AttendInputs) -> Gradients:
    """Gradients of the tensors of the inputs."""
    if x.q.numel() == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in x.tensors)
    if _head_dim(x) > MOST_CHANNELS:
        return offsets.attend_backward(grad, x)
    with torch.cuda.device_of(x.q):
        return _window_backward(grad, x) if window_radius(x) else _offsets_backward(grad, x)


def window_radius(x: AttendInputs) -> int:
    """The radius of a window that the kernels on tiles serve, 0 of any other neighbourhood.

    Odd squares without dilation, at stride 1 or 2, on a border that reflects or is zero. A number for each offset can
    not be counted by pixel where a border reflects; a map so small that a position bounces twice suits any form.
    """
    if x.bias is not None or x.key_offsets is not None or not serves_window(x.nbhd, (x.k.shape[2], x.k.shape[3])):
        return 0
    return _square_radius(x.nbhd)


def serves_window(nbhd: Neighborhood, size: tuple[int, int]) -> bool:
    """Whether the kernels on tiles serve this neighbourhood on a map of this size."""
    radius = _square_radius(nbhd) if triton_takes_tiles() else 0
    return radius > 0 and not (nbhd.border == "reflect" and min(size) <= radius + 1)


@lru_cache(maxsize=256)
def _square_radius(nbhd: Neighborhood) -> int:
    radius = max(0, nbhd.offsets[-1][0])
    if nbhd.stride not in ((1, 1), (2, 2)) or nbhd.border == "replicate" or len(nbhd) != (2 * radius + 1) ** 2:
        return 0
    return radius if nbhd == Neighborhood.window(2 * radius + 1, stride=nbhd.stride, border=nbhd.border) else 0


def _head_dim(x: AttendInputs) -> int:
    return x.k.shape[1] // x.num_heads


def _empty(like: Tensor) -> Tensor:
    return empty_channels_last(like.shape, like)


def _sums(x: AttendInputs) -> Tensor:
    """Room for what the key kernels read of every softmax, ``top``, ``total`` and ``inner``: ``[3, B, N, Ho, Wo]``."""
    return x.q.new_empty((3, x.q.shape[0], x.num_heads, *x.q.shape[-2:]), dtype=torch.float32)


def _tables(x: AttendInputs) -> Tables:
    return tables(x.nbhd, (x.k.shape[2], x.k.shape[3]), x.k.device)


def precision_of(dtype: torch.dtype) -> str:
    """How products multiply float32: as torch's own under ``torch.set_float32_matmul_precision``.

    ``"highest"`` takes three tensor-core products, which lose about as little as float32 itself does.
    """
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


def _window_launch(kind: Kind, x: AttendInputs) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and compile-time constants of a window kernel."""
    (batch, channels, height, width), (out_h, out_w) = x.k.shape, x.q.shape[-2:]
    dim = channels // x.num_heads
    work = Work(
        kind, window_radius(x), x.nbhd.stride[0], (height, width), (out_h, out_w), dim, x.num_heads, batch, x.k.dtype
    )
    tile = choose_tile(work)
    down, across = tile.programs(work.own)
    constants = {
        "C": dim,
        "CP": work.padded_dim,
        "RADIUS": work.radius,
        "STRIDE": work.stride,
        "REFLECT": x.nbhd.border == "reflect",
        "PRECISION": precision_of(x.k.dtype),
        **tile.constants(),
        **FUSED_MULTIPLY_ADD,
    }
    programs = batch * (x.num_heads // tile.heads) * down * across
    return (programs,), (x.num_heads, height, width, out_h, out_w, down, across), constants


@dataclass(frozen=True)
class Mix:
    """What :func:`window_forward` does beside the attention: ``act(gain * attend(q, k - p, v) + other + shift)``.

    Args:
        position: p at a pixel is this times its coordinates, ``[C/N, 2]`` in float32; see :func:`convattn.ops.acmix`.
        gain: what the attention is multiplied by, ``[1]`` or ``[C]``.
        other: a map like the output.
        shift: ``[Ho, Wo, C]``, added to every image; its rows and columns may be expanded.
        relu: whether a ReLU follows.
    """

    position: Tensor | None
    gain: Tensor
    other: Tensor
    shift: Tensor | None
    relu: bool


@kept_on_gpu
def walk(columns: int, pixels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row, row, column, column, 1 and zeros for every pixel of a halo, ``[pixels, 16]``.

    Integers, exact in any dtype up to 256: products with them give what depends on a key's place.
    """
    at = torch.arange(pixels)
    row, column = at // columns, at % columns
    table = torch.stack([row, row, column, column, torch.ones_like(row)], 1)
    return F.pad(table, (0, 11)).to(device, dtype)


def _placed(position: Tensor | None, q: Tensor, constants: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The position and the walk for a kernel with these constants; any tensors where there is no position."""
    if position is None:
        return q, q
    return position, walk(constants["LW"], constants["S"] * constants["STEPS"], q.dtype, q.device)


def window_forward(x: AttendInputs, mix: Mix | None = None) -> Tensor:
    """``attend`` by the kernel on tiles, and what is asked for beside it."""
    from convattn.ops.attend.triton_window import forward_kernel

    if x.scale < 0:  # the kernels' softmax starts from the largest product, so their scale is at least 0
        return window_forward(x._replace(q=-x.q, scale=-x.scale), mix)
    q, k, v = (channels_last(t) for t in (x.q, x.k, x.v))
    out, t = _empty(q), _tables(x)
    grid, sizes, constants = _window_launch("forward", x)
    strides = (stride for m in (q, k, v, out) for stride in map_strides(m))
    mixed: tuple[Tensor, ...] = (q, q, q, q, q)
    has_position = mix is not None and mix.position is not None
    steps: tuple[int, ...] = (0,) * 6
    if mix is not None:
        other = channels_last(mix.other)
        shift = q if mix.shift is None else mix.shift
        mixed = (*_placed(mix.position, q, constants), mix.gain, other, shift)
        steps = (int(len(mix.gain) > 1), *map_strides(other), *((0, 0) if mix.shift is None else shift.stride()[:2]))
    forward_kernel[grid](
        *(q, k, v, out, *t.gathered, *mixed),
        *strides,
        *steps,
        *sizes,
        x.scale,
        HAS_POSITION=has_position,
        MIXED=mix is not None,
        HAS_SHIFT=mix is not None and mix.shift is not None,
        RELU=mix is not None and mix.relu,
        **constants,
    )
    return out


def window_backward(
    grad: Tensor,
    x: AttendInputs,
    into: tuple[Tensor, Tensor, Tensor],
    gain: Tensor | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Gradients of q, k and v, written into channels_last maps, those of k and v of the same strides.

    Args:
        grad: of the output.
        x: the inputs.
        into: where the gradients go.
        gain: ``[1]``: they are those of ``gain * attend``.
        position: what is taken from the keys, as in :class:`Mix`.

    Returns:
        The products of the gradient with the attention, summed over the channels of each head: ``[B, N, Ho, Wo]``.
    """
    from convattn.ops.attend.triton_window import key_kernel, query_kernel

    if x.scale < 0:
        inner = window_backward(grad, x._replace(q=-x.q, scale=-x.scale), into, gain, position)
        into[0].neg_()
        return inner
    q, k, v, grad = (channels_last(t) for t in (x.q, x.k, x.v, grad))
    (dq, dk, dv), t, sums = into, _tables(x), _sums(x)
    of_gain = q if gain is None else gain
    options = {"HAS_POSITION": position is not None, "HAS_GAIN": gain is not None}
    read = [stride for m in (q, k, v, grad) for stride in map_strides(m)]
    grid, sizes, constants = _window_launch("query", x)
    query_kernel[grid](
        *(q, k, v, grad, *sums, dq, *t.gathered, *_placed(position, q, constants), of_gain),
        *read,
        *map_strides(dq),
        *sizes,
        x.scale,
        **options,
        **constants,
    )
    grid, sizes, constants = _window_launch("key", x)
    key_kernel[grid](
        *(q, k, v, grad, *sums, dk, dv, *t.scattered, q if position is None else position, of_gain),
        *read,
        *map_strides(dk),
        *sizes,
        *t.folds,
        x.scale,
        **options,
        **constants,
    )
    return sums[2]


def _window_backward(grad: Tensor, x: AttendInputs) -> Gradients:
    into = _empty(x.q), _empty(x.k), _empty(x.v)
    window_backward(grad, x, into)
    return *into, None, None


@dataclass(frozen=True)
class _OffsetsLaunch:
    """What the offset-wise kernels are launched with."""

    bias: Tensor
    vectors: Tensor
    pixels: int
    constants: dict[str, int]

    @classmethod
    def of(cls, x: AttendInputs) -> _OffsetsLaunch:
        dim = _head_dim(x)
        padded = next_power_of_two(dim)
        pixels = max(16, min(128, 2048 // padded))
        constants = {
            "C": dim,
            "CP": padded,
            "PIXELS": pixels,
            "HAS_BIAS": x.bias is not None,
            "HAS_VECTORS": x.key_offsets is not None,
            "num_warps": 4,
            **FUSED_MULTIPLY_ADD,
        }
        none = x.q.new_empty(1, dtype=torch.float32)
        bias, vectors = (
            none if table is None else table.float().expand(x.num_heads, *table.shape[1:]).contiguous()
            for table in (x.bias, x.key_offsets)
        )
        return cls(bias, vectors, pixels, constants)

    def tiles(self, size: tuple[int, int]) -> int:
        return -(-size[0] * size[1] // self.pixels)


def _offsets_forward(x: AttendInputs) -> Tensor:
    from convattn.ops.attend.triton_offsets import forward_kernel

    q, k, v = (channels_last(t) for t in (x.q, x.k, x.v))
    out, t, launch = _empty(q), _tables(x), _OffsetsLaunch.of(x)
    out_h, out_w = q.shape[-2:]
    tiles = launch.tiles((out_h, out_w))
    forward_kernel[(q.shape[0] * x.num_heads * tiles,)](
        *(q, k, v, launch.bias, launch.vectors, out, *t.gathered),
        *(stride for m in (q, k, v, out) for stride in map_strides(m)),
        *(x.num_heads, tiles, out_h, out_w, len(x.nbhd), *x.nbhd.stride, x.scale),
        **launch.constants,
    )
    return out


def _offsets_backward(grad: Tensor, x: AttendInputs) -> Gradients:
    from convattn.ops.attend.triton_offsets import key_kernel, query_kernel

    q, k, v, grad = (channels_last(t) for t in (x.q, x.k, x.v, grad))
    dq, dk, dv, t, launch = _empty(q), _empty(k), _empty(v), _tables(x), _OffsetsLaunch.of(x)
    (batch, _, height, width), (out_h, out_w) = k.shape, q.shape[-2:]
    sums = _sums(x)
    learns = x.bias is not None or x.key_offsets is not None
    dlogits = sums.new_empty((batch, x.num_heads, len(x.nbhd), out_h, out_w) if learns else 1)
    read = [stride for m in (q, k, v, grad) for stride in map_strides(m)]
    tiles = launch.tiles((out_h, out_w))
    query_kernel[(batch * x.num_heads * tiles,)](
        *(q, k, v, launch.bias, launch.vectors, grad, *sums, dq, dlogits, *t.gathered),
        *read,
        *map_strides(dq),
        *(x.num_heads, tiles, out_h, out_w, len(x.nbhd), *x.nbhd.stride, x.scale),
        **launch.constants,
    )
    tiles = launch.tiles((height, width))
    key_kernel[(batch * x.num_heads * tiles,)](
        *(q, k, v, launch.bias, launch.vectors, grad, *sums, dk, dv, *t.scattered),
        *read,
        *map_strides(dk),
        *(x.num_heads, tiles, height, width, out_h, out_w, len(x.nbhd), *t.folds, x.scale),
        **launch.constants,
    )
    return dq, dk, dv, *_table_gradients(dlogits, x)


def _table_gradients(dlogits: Tensor, x: AttendInputs) -> Gradients:
    """Gradients of bias and key_offsets from those of the logits ``[B, N, K, Ho, Wo]``."""
    dbias = doffsets = None
    if x.bias is not None:
        dbias = dlogits.sum((0, 3, 4), dtype=torch.float64).sum_to_size(x.bias.shape)
    if x.key_offsets is not None:
        rows = _rows_together(*x.q.shape[-2:])
        queries = x.q.float().unflatten(1, (x.num_heads, -1)).unflatten(3, (-1, rows))
        toward = torch.einsum("bnmrhw,bncrhw->bnrmc", dlogits.unflatten(3, (-1, rows)), queries)
        toward = toward.sum((0, 2), dtype=torch.float64) * x.scale
        doffsets = toward.sum_to_size(x.key_offsets.shape)
    return dbias, doffsets


def _rows_together(height: int, width: int) -> int:
    """Rows of a map to sum in float32 before float64 takes over: a divisor of the height, up to about 64 pixels."""
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and (rows == 1 or rows * width <= 64))
