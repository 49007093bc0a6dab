"""``acmix`` by the CPU kernels of ``csrc/kernels_window.cpp``: one 1x1 convolution, then everything else in one pass.

The projection runs over a few images at a time, so that q, k and v stay in the cache and fresh memory is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._abi import TYPES, Window, call, float_table, is_fast_window
from convattn.ops._layout import empty_channels_last
from convattn.ops.acmix import composed
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.neighborhood import Neighborhood

CHUNK_BYTES = 10 << 20
"""How much of q, k and v is made at a time; measured on 32 MiB of shared cache."""
BACKWARD_CHUNK_BYTES = 5 << 20
"""The same where their gradients are as large again."""
KEPT_PIXELS = 8
"""Up to how many pixels of a map for each channel training keeps q, k and v."""
_ALL = slice(None)


def not_supported_reasons(x: AcmixInputs | None = None) -> list[str]:
    """Why the kernels cannot run here, or not on these inputs."""
    if x is None:
        return _dispatch.native_reasons()
    kernel = (x.weight.shape[1], x.weight.shape[2])
    reasons = geometry_reasons(x.x, x.nbhd, x.channels // x.num_heads, kernel, x.dilation)
    return reasons + _dispatch.size_reasons(x.projection_weight)


def geometry_reasons(
    x: Tensor, nbhd: Neighborhood, head_dim: int, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> list[str]:
    """Why the kernels do not serve this window, kernel and input."""
    reasons = _dispatch.native_reasons(x)
    if not is_fast_window(nbhd, head_dim):
        reasons.append("needs a 7x7 window, stride 1 or 2, a reflected border and 16 channels a head or more")
    if kernel_size != (3, 3) or dilation != (1, 1):
        reasons.append(f"needs a 3x3 kernel without dilation, got {list(kernel_size)}, dilation {list(dilation)}")
    return reasons


def keeps_projection(x: AcmixInputs) -> bool:
    """Whether training keeps q, k and v for the backward. For few channels, projecting a large map again is faster."""
    return x.x.shape[-2] * x.x.shape[-1] <= KEPT_PIXELS * x.channels


def acmix(x: AcmixInputs) -> tuple[Tensor, Tensor]:
    """The output and, if they are to be kept, q, k and v in one map (else an empty tensor)."""
    scale = float_table(x.scale)
    if len(scale) != x.channels:
        scale = scale.expand(x.channels).contiguous()
    tables = (float_table(x.position), scale, float_table(x.weight), float_table(x.bias))
    out = empty_channels_last(x.output_shape, x.x)
    qkv = _project(x, _ALL) if x.keep else None
    for part in _chunks(x, CHUNK_BYTES):
        maps = _project(x, part) if qkv is None else qkv[part]
        target = _of(out, part)
        call("convattn_acmix_forward", _window(x, len(target), TYPES[maps.dtype]), maps, *tables, target)
        del maps  # before the next are made: two at a time would be fresh memory every time
    return out, x.x.new_empty(0) if qkv is None else qkv


def acmix_backward(grad: Tensor, x: AcmixInputs, out: Tensor, qkv: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AcmixInputs.tensors`."""
    if x.scale.shape[0] != 1:
        return composed.acmix_backward(grad, x, out, qkv)
    grad = grad * (out > 0).to(grad.dtype) if x.activation == "relu" else grad
    grad = grad.contiguous(memory_format=torch.channels_last)
    threads, position, weight = torch.get_num_threads(), float_table(x.position), float_table(x.weight)
    dposition = None if position is None else torch.zeros((threads, *position.shape), dtype=torch.float64)
    dweight = torch.zeros((threads, *x.weight.shape), dtype=torch.float64)
    dscale = torch.zeros(threads, dtype=torch.float64)
    alpha = float(x.scale)
    dx = empty_channels_last(x.x.shape, x.x)
    dprojection: Tensor | None = None
    dprojection_bias: Tensor | None = None
    dmaps = None
    for part in _chunks(x, BACKWARD_CHUNK_BYTES):
        maps = (qkv[part] if qkv.numel() else _project(x, part)).float()
        dmaps = torch.empty_like(maps, memory_format=torch.channels_last) if dmaps is None else dmaps[: len(maps)]
        arguments = (maps, position, alpha, weight, grad[part].float(), dmaps, dposition, dweight, dscale)
        call("convattn_acmix_backward", _window(x, len(maps)), *arguments)
        dpart, dw, db = composed.project_backward(dmaps.to(x.x.dtype), x, part)
        if len(dpart) == len(dx):
            dx = dpart
        else:
            dx[part] = dpart
        dprojection = dw if dprojection is None else dprojection.add_(dw)
        dprojection_bias = db if dprojection_bias is None or db is None else dprojection_bias.add_(db)
        del maps, arguments
    return (
        dx,
        torch.zeros_like(x.projection_weight) if dprojection is None else dprojection,
        dprojection_bias
        if dprojection_bias is not None or x.projection_bias is None
        else torch.zeros_like(x.projection_bias),
        None if dposition is None else dposition.sum(0),
        dweight.sum(0),
        dscale.sum().reshape(1),
        None if x.bias is None else grad.sum((0, 2, 3), dtype=torch.float32),
    )


def _chunks(x: AcmixInputs, size: int) -> Iterator[slice]:
    batch, _, height, width = x.x.shape
    fit = size // (12 * x.channels * height * width)
    images = max(1, torch.get_num_threads(), fit)
    if 0 < batch <= images:
        return iter((_ALL,))
    return (slice(first, min(first + images, batch)) for first in range(0, batch, images))


def _of(x: Tensor, part: slice) -> Tensor:
    return x if part is _ALL else x[part]


def _project(x: AcmixInputs, part: slice) -> Tensor:
    qkv = _dispatch.pointwise_convolution(_of(x.x, part), x.projection_weight, x.projection_bias)
    return qkv.contiguous(memory_format=torch.channels_last)


def _window(x: AcmixInputs, batch: int, type_of_maps: int = 0) -> Window:
    relu = int(x.activation == "relu")
    head_dim, stride = x.channels // x.num_heads, x.nbhd.stride[0]
    threads, size = torch.get_num_threads(), x.x.shape[-2:]
    return Window(batch, *size, x.num_heads, head_dim, stride, relu, threads, x.softmax_scale, type_of_maps)
