"""``acmix`` on a GPU: two convolutions by torch's library, and a kernel that attends and mixes both paths.

The tensor cores take a convolution of the input at full speed and a grouped one at a tenth of it. So the convolution
path is composed with the projection into one convolution of the input, a product of small matrices, at every call.
Its zero border lies after the projection, whose bias therefore counts for the taps inside the map alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._layout import channels_last
from convattn.ops._triton import FUSED_MULTIPLY_ADD, kept_on_gpu, next_power_of_two
from convattn.ops.acmix import composed
from convattn.ops.acmix.inputs import AcmixInputs, coordinates
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.attend.triton import MOST_CHANNELS, Mix, serves_window, window_backward, window_forward
from convattn.ops.neighborhood import Neighborhood, same_padding

PARTS = 3
"""In so many numbers of 8 bits, a half type holds a coordinate as float32 does."""

SUM_PIXELS, SUM_CHANNELS, SUM_PROGRAMS = 64, 64, 528


def not_supported_reasons(x: AcmixInputs | None = None) -> list[str]:
    """Why the kernels cannot run here, or not on these inputs."""
    reasons = _dispatch.triton_reasons(x)
    return reasons if x is None else reasons + geometry_reasons(x.x, x.nbhd, x.channels // x.num_heads)


def geometry_reasons(x: Tensor, nbhd: Neighborhood, head_dim: int) -> list[str]:
    """Why the kernels do not serve this window, head and map."""
    if head_dim > MOST_CHANNELS:
        return [f"needs at most {MOST_CHANNELS} channels a head, got {head_dim}"]
    if not serves_window(nbhd, (x.shape[2], x.shape[3])):
        return ["needs an odd square window without dilation, stride 1 or 2, and a map larger than half of it"]
    return []


class Folded(NamedTuple):
    """What follows from the weights and the size of the map.

    Args:
        dense: the convolution path as a convolution of the input, ``[C, C_in, kh, kw]`` in channels_last.
        position: p in float32.
        shift: what is added to every image, ``[Ho, Wo, C]``.
    """

    dense: Tensor
    position: Tensor | None
    shift: Tensor | None


def acmix(x: AcmixInputs) -> tuple[Tensor, Tensor]:
    """The output and, if they are to be kept, q, k and v in one map (else an empty tensor)."""
    if 0 in x.output_shape:
        return composed.acmix_and_kept(x)
    with torch.cuda.device_of(x.x):
        out, qkv = _by_kernels(x._replace(x=channels_last(x.x)), fold(x))
    return out, qkv if x.keep else x.x.new_empty(0)


def fold(x: AcmixInputs) -> Folded:
    """What :func:`prepare` computes once, and a call without it every time."""
    return Folded(_dense(x, _by_group(x)), _position(x), _shift(x))


def prepare(x: AcmixInputs) -> Callable[[Tensor], Tensor]:
    """The operator as a function of maps like this one, for weights that stay as they are.

    Maps that the kernels do not serve, an empty batch or less than a window, go by operators.
    """
    if 0 in x.output_shape or geometry_reasons(x.x, x.nbhd, x.channels // x.num_heads):
        return lambda maps: composed.acmix(x._replace(x=maps))
    with torch.cuda.device_of(x.x):
        folded = fold(x)

    def run(maps: Tensor) -> Tensor:
        with torch.cuda.device_of(maps):
            return _by_kernels(x._replace(x=channels_last(maps)), folded)[0]

    return run


def _by_kernels(x: AcmixInputs, folded: Folded) -> tuple[Tensor, Tensor]:
    """The output, and q, k and v in one map."""
    qkv = _project(x)
    other = F.conv2d(x.x, folded.dense, None, *_geometry(x))
    mix = Mix(folded.position, x.scale, other, folded.shift, x.activation == "relu")
    return window_forward(_attention(x, qkv), mix), qkv


def acmix_backward(grad: Tensor, x: AcmixInputs, out: Tensor, qkv: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AcmixInputs.tensors`."""
    if x.scale.shape[0] != 1 or 0 in x.output_shape:
        return composed.acmix_backward(grad, x, out, qkv)
    grad = channels_last(grad * (out > 0).to(grad.dtype) if x.activation == "relu" else grad)
    x = x._replace(x=channels_last(x.x))
    with torch.cuda.device_of(x.x):
        return _gradients(grad, x, channels_last(qkv) if qkv.numel() else _project(x))


def _gradients(grad: Tensor, x: AcmixInputs, qkv: Tensor) -> tuple[Tensor | None, ...]:
    dqkv, inner = _attention_gradient(grad, x, qkv)
    parts = _by_group(x)
    dx, ddense, _ = torch.ops.aten.convolution_backward(
        grad, x.x, _dense(x, parts), None, *_geometry(x), False, [0, 0], 1, [True, True, False]
    )
    lines, dlines = _pixels(x.x), _pixels(dqkv)
    dprojection = (dlines.t() @ lines).view_as(x.projection_weight)
    dx = _pixels(dx).addmm_(dlines, x.projection_weight.flatten(1)).view(dx.permute(0, 2, 3, 1).shape)
    dtap, of_pixels = _tap_gradient(grad, x), _pixel_sums(dqkv, x)
    dweight, dinto, of_bias = _dense_gradient(ddense, dtap, x, parts)
    return (
        dx.permute(0, 3, 1, 2),
        dprojection + dinto,
        None if of_bias is None or of_pixels is None else of_pixels[0] + of_bias,
        _position_gradient(x, of_pixels),
        dweight,
        inner.sum().view(1),
        None if x.bias is None or dtap is None else dtap[dtap.shape[0] // 2, dtap.shape[1] // 2],
    )


def _pixels(x: Tensor) -> Tensor:
    """A channels_last map as ``[pixels, channels]``."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _geometry(x: AcmixInputs) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation of the convolution path."""
    padding = same_padding(x.weight.shape[1:3], x.dilation)
    return list(x.nbhd.stride), list(padding), list(x.dilation)


def _project(x: AcmixInputs) -> Tensor:
    """q, k and v; in half precision by a product of matrices, which adds the bias as it stores."""
    weight, bias = x.projection_weight, x.projection_bias
    if x.x.dtype == torch.float32:  # a convolution may take TF32 where a product of matrices may not
        qkv = channels_last(F.conv2d(x.x, weight, bias))
    else:
        qkv = F.linear(x.x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return qkv


def _attention(x: AcmixInputs, qkv: Tensor) -> AttendInputs:
    q, k, v = qkv.chunk(3, 1)
    return AttendInputs(_centres(q, x), k, v, None, None, x.nbhd, x.num_heads, x.softmax_scale)


def _position(x: AcmixInputs) -> Tensor | None:
    return None if x.position is None else x.position.float().contiguous()


def _centres(q: Tensor, x: AcmixInputs) -> Tensor:
    """As :meth:`Neighborhood.centres`, which copies: a view."""
    return q[:, :, :: x.nbhd.stride[0], :: x.nbhd.stride[1]]


def _attention_gradient(grad: Tensor, x: AcmixInputs, qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Of q, k and v, and what sums to the gradient of γ."""
    dqkv = torch.empty_like(qkv)
    dq, dk, dv = dqkv.chunk(3, 1)
    if x.nbhd.stride != (1, 1):
        dq.zero_()
    inner = window_backward(grad, _attention(x, qkv), (_centres(dq, x), dk, dv), x.scale, _position(x))
    return dqkv, inner


def _by_group(x: AcmixInputs) -> tuple[Tensor, Tensor]:
    """The convolution path ``[d, N * kh * kw, 3N]`` and the projection ``[d, 3N, C_in]``, by channel of a head."""
    maps, *_, dim = x.weight.shape
    weight = x.weight.permute(4, 3, 1, 2, 0).to(x.x.dtype, memory_format=torch.contiguous_format)
    return weight.flatten(1, 3), x.projection_weight.view(maps, dim, -1).transpose(0, 1)


def _dense(x: AcmixInputs, parts: tuple[Tensor, Tensor]) -> Tensor:
    """The convolution path as a convolution of the input, ``[C, C_in, kh, kw]`` in channels_last."""
    product = torch.bmm(*parts)
    return product.view(x.channels, *x.weight.shape[1:3], -1).permute(0, 3, 1, 2)


def _shift(x: AcmixInputs) -> Tensor | None:
    """What is added to every image ``[Ho, Wo, C]``: the bias, and that of the projection through the taps inside."""
    height, width = x.output_shape[2:]
    if x.projection_bias is None:
        return None if x.bias is None else x.bias.expand(height, width, -1)
    from convattn.ops.acmix.triton_kernels import shift_kernel

    out = torch.empty((height, width, x.channels), dtype=torch.float32, device=x.x.device)
    weight, projection_bias = x.weight.contiguous(), x.projection_bias.contiguous()
    maps, kh, kw, heads, dim = weight.shape
    padded = next_power_of_two(maps)
    pixels, channels = min(next_power_of_two(width), 64), max(16, min(64, 1024 // padded))
    shift_kernel[(height, -(-width // pixels), -(-x.channels // channels))](
        *(weight, projection_bias, projection_bias if x.bias is None else x.bias.contiguous(), out),
        *(maps, heads, dim, x.x.shape[2], x.x.shape[3], width, *x.nbhd.stride, *x.dilation, kh, kw),
        MAPS=padded,
        PIXELS=pixels,
        CHANNELS=channels,
        HAS_BIAS=x.bias is not None,
        num_warps=4,
        **FUSED_MULTIPLY_ADD,
    )
    return out


def _dense_gradient(
    ddense: Tensor, dtap: Tensor | None, x: AcmixInputs, parts: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the convolution path, and through it of the projection and its bias.

    Args:
        ddense: gradient of :func:`_dense`.
        dtap: gradient of every tap on a map of ones ``[kh, kw, C]``.
        x: the inputs.
        parts: of :func:`_by_group`.
    """
    maps, kh, kw, heads, dim = x.weight.shape
    weight, into = parts
    by_group = ddense.permute(0, 2, 3, 1).reshape(dim, heads * kh * kw, -1)
    dweight = torch.bmm(by_group, into.transpose(1, 2)).view(dim, heads, kh, kw, maps).permute(4, 2, 3, 1, 0)
    dinto = torch.bmm(weight.transpose(1, 2), by_group).transpose(0, 1).reshape(x.projection_weight.shape)
    if x.projection_bias is None or dtap is None:
        return dweight, dinto, None
    of_taps = dtap.view(kh, kw, dim, heads)
    bias = x.projection_bias.float().view(maps, dim)
    dweight = dweight + torch.einsum("yxgn,tg->tyxng", of_taps, bias)
    return dweight, dinto, torch.einsum("tyxng,yxgn->tg", x.weight.float(), of_taps).flatten()


def _tap_gradient(grad: Tensor, x: AcmixInputs) -> Tensor | None:
    """What a map of ones would give every tap of the convolution path, ``[kh, kw, C]``; None without any bias."""
    if x.bias is None and x.projection_bias is None:
        return None
    kernel = x.weight.shape[1], x.weight.shape[2]
    rows, columns = (
        (x.x.shape[2 + axis], x.output_shape[2 + axis], x.nbhd.stride[axis], x.dilation[axis]) for axis in (0, 1)
    )
    sums = _weighted_sums(grad, _taps_inside(rows, columns, kernel, grad.dtype, grad.device))
    return sums[: kernel[0] * kernel[1]].view(*kernel, -1)


def _pixel_sums(dqkv: Tensor, x: AcmixInputs) -> Tensor | None:
    """Sums over the pixels of the gradients of q, k and v: plain, then by the parts of both coordinates."""
    if x.position is None and x.projection_bias is None:
        return None
    return _weighted_sums(dqkv, _coordinate_parts(dqkv.shape[2], dqkv.shape[3], dqkv.dtype, dqkv.device))


def _position_gradient(x: AcmixInputs, of_pixels: Tensor | None) -> Tensor | None:
    """From the sums of :func:`_pixel_sums`."""
    if x.position is None or of_pixels is None:
        return None
    of_keys = of_pixels[1 : 1 + 2 * PARTS, x.channels : 2 * x.channels]
    return of_keys.unflatten(0, (2, PARTS)).unflatten(2, (x.num_heads, -1)).sum((1, 2)).t()


def _weighted_sums(x: Tensor, weights: Tensor) -> Tensor:
    """``weights`` ``[pixels, rows]`` times a map, summed over its pixels and images: ``[rows, C]`` in float32."""
    from convattn.ops.acmix.triton_kernels import weighted_sums_kernel

    lines, rows = _pixels(x).contiguous(), weights.shape[1]
    blocks = -(-lines.shape[1] // SUM_CHANNELS)
    chunk = SUM_PIXELS * max(1, len(lines) * blocks // (SUM_PIXELS * SUM_PROGRAMS))
    chunks = -(-len(lines) // chunk)
    out = torch.empty((chunks, rows, lines.shape[1]), dtype=torch.float32, device=x.device)
    weighted_sums_kernel[(blocks, chunks)](
        *(lines, weights, out, len(lines), len(weights), chunk, lines.shape[1]),
        ROWS=rows,
        PIXELS=SUM_PIXELS,
        CHANNELS=SUM_CHANNELS,
        num_warps=4,
        **FUSED_MULTIPLY_ADD,
    )
    return out.sum(0)


@kept_on_gpu
def _taps_inside(
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    kernel: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """1 where a tap of an output lies on the map, ``[outputs, taps]``, filled up with zeros.

    Args:
        rows: size, outputs, stride and dilation.
        columns: the same.
        kernel: taps down and across.
        dtype: of the table.
        device: where it goes.
    """
    inside = []
    for (size, outputs, stride, dilation), taps in zip((rows, columns), kernel, strict=True):
        at = torch.arange(outputs)[:, None] * stride + (torch.arange(taps) - taps // 2) * dilation
        inside.append(((at >= 0) & (at < size)).float())
    table = torch.einsum("yk,xl->yxkl", *inside).flatten(2).flatten(0, 1)
    return _filled_up(table).to(device, dtype)


@kept_on_gpu
def _coordinate_parts(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of every pixel 1, then -x and -y in parts that the dtype holds, ``[pixels, 1 + 2 * PARTS]`` filled up."""
    ones = torch.ones(height, width)
    left = torch.stack([-coordinates(width, ones).expand(height, -1), -coordinates(height, ones)[:, None] * ones])
    parts = []
    for _ in range(PARTS):
        part = left.to(dtype).float()
        parts.append(part)
        left = left - part
    table = torch.cat([ones[None], torch.stack(parts, 1).flatten(0, 1)]).flatten(1).t()
    return _filled_up(table).to(device, dtype)


def _filled_up(table: Tensor) -> Tensor:
    """With columns of zeros to as many as a product takes."""
    columns = table.shape[1]
    return F.pad(table, (0, max(16, next_power_of_two(columns)) - columns)).contiguous()
