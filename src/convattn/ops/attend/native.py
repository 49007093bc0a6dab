"""``attend`` by the CPU kernels of ``csrc/``: those for windows of 3x3, 5x5 and 7x7, else those for any offsets."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops._abi import Window, call, fast_window, float_map, geometry_of, map_of
from convattn.ops._layout import memory_format_of
from convattn.ops.attend.inputs import AttendInputs


def attend(x: AttendInputs) -> Tensor:
    """See :func:`convattn.ops.attend`."""
    if _fast(x):
        q, k, v = (float_map(t) for t in (x.q, x.k, x.v))
        out = torch.empty_like(q, memory_format=torch.channels_last)
        call("convattn_window_forward", _window(x), *(map_of(t) for t in (q, k, v, out)))
        return out.to(x.q.dtype)
    q, k, v = (t.float() for t in (x.q, x.k, x.v))
    out = torch.empty(q.shape).contiguous(memory_format=memory_format_of(x.q))
    geometry = geometry_of(k, x.nbhd, x.num_heads, x.scale)
    call("convattn_attend", geometry, *(map_of(t) for t in (q, k, v)), *_tables(x), map_of(out))
    return out.to(x.q.dtype)


def attend_backward(grad: Tensor, x: AttendInputs) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AttendInputs.tensors`."""
    if _fast(x):
        q, k, v, dout = (float_map(t) for t in (x.q, x.k, x.v, grad))
        dq, dk, dv = (torch.zeros_like(t, memory_format=torch.channels_last) for t in (q, k, v))
        call("convattn_window_backward", _window(x), *(map_of(t) for t in (q, k, v, dout, dq, dk, dv)))
        return dq, dk, dv, None, None
    q, k, v, dout = (t.float() for t in (x.q, x.k, x.v, grad))
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros_like(t) for t in (k, v))
    heads, taps, head_dim = x.num_heads, len(x.nbhd), k.shape[1] // x.num_heads
    dbias = None if x.bias is None else k.new_empty((k.shape[0], heads, taps), dtype=torch.float64)
    doffsets = None
    if x.key_offsets is not None:
        doffsets = k.new_empty((k.shape[0], heads, taps, head_dim), dtype=torch.float64)
    geometry = geometry_of(k, x.nbhd, heads, x.scale)
    maps = [map_of(t) for t in (q, k, v)], [map_of(t) for t in (dout, dq, dk, dv)]
    call("convattn_attend_backward", geometry, *maps[0], *_tables(x), *maps[1], dbias, doffsets)
    return dq, dk, dv, _summed(dbias, x.bias), _summed(doffsets, x.key_offsets)


def _fast(x: AttendInputs) -> bool:
    return x.bias is None and x.key_offsets is None and fast_window(x.nbhd, x.k.shape[1] // x.num_heads) > 0


def _window(x: AttendInputs) -> Window:
    batch, channels, height, width = x.k.shape
    head_dim, stride, threads = channels // x.num_heads, x.nbhd.stride[0], torch.get_num_threads()
    size = fast_window(x.nbhd, head_dim)
    return Window(batch, height, width, x.num_heads, head_dim, stride, 0, threads, x.scale, 0, size)


def _tables(x: AttendInputs) -> tuple[Tensor | None, Tensor | None]:
    return tuple(  # type: ignore[return-value]
        None if t is None else t.float().expand(x.num_heads, *t.shape[1:]).contiguous() for t in (x.bias, x.key_offsets)
    )


def _summed(found: Tensor | None, table: Tensor | None) -> Tensor | None:
    """A gradient of every image and head, summed over the images, and over the heads where they share the table."""
    return None if found is None or table is None else found.sum(0).sum_to_size(table.shape)
