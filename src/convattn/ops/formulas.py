"""FLOP formulas of the operators, known to any ``torch.utils.flop_counter.FlopCounterMode`` as they are defined.

A FLOP counter counts a multiply-add as two.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.convattn

Convention: TypeAlias = Literal["counted", "published"]


def _pairs(shape: Any, offsets: Any) -> int:
    """Channels times output pixels times offsets."""
    batch, channels, height, width = shape
    return int(batch * channels * height * width * (len(offsets) // 2))


@register_flop_formula(_ops.attend)
def attend(
    q: Any, k: Any, v: Any, bias: Any, key_offsets: Any, offsets: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Logits and weighted sum, at the output resolution; with ``key_offsets`` their products too."""
    return 2 * _pairs(q, offsets) * (2 if key_offsets is None else 3)


@register_flop_formula(_ops.attend_backward)
def attend_backward(
    grad: Any, q: Any, k: Any, v: Any, bias: Any, key_offsets: Any, offsets: Any, *args: Any, **kwargs: Any
) -> int:
    """The logits once more and four gradients; with ``key_offsets`` three more."""
    return 2 * _pairs(q, offsets) * (5 if key_offsets is None else 8)


@register_flop_formula(_ops.correlate)
def correlate(q: Any, k: Any, offsets: Any, *args: Any, **kwargs: Any) -> int:
    """One product a channel and offset."""
    return 2 * _pairs(q, offsets)


@register_flop_formula(_ops.aggregate)
def aggregate(weights: Any, v: Any, offsets: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """One product a channel and offset."""
    return 2 * _pairs((v[0], v[1], weights[3], weights[4]), offsets)


@register_flop_formula(_ops.scatter)
def scatter(weights: Any, u: Any, offsets: Any, *args: Any, **kwargs: Any) -> int:
    """One product a channel and offset."""
    return 2 * _pairs(u, offsets)


def acmix_parts(
    x: Any, projection: Any, weight: Any, offsets: Any, stride: Any, convention: Convention = "counted"
) -> tuple[int, int, int]:
    """Multiply-adds of the projection, the attention path and the convolution path."""
    batch, c_in, height, width = x
    maps, kernel_h, kernel_w, heads, head_dim = weight
    outputs = batch * ((height - 1) // stride[0] + 1) * ((width - 1) // stride[1] + 1)
    channels = heads * head_dim
    queries = batch * height * width if convention == "published" else outputs
    attention = 2 * queries * channels * (len(offsets) // 2)
    return batch * height * width * projection[0] * c_in, attention, outputs * channels * maps * kernel_h * kernel_w


@register_flop_formula(_ops.acmix)
def acmix(
    x: Any,
    projection_weight: Any,
    projection_bias: Any,
    position: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    offsets: Any,
    stride: Any,
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """The projection, logits and weighted sum, and the folded convolution."""
    return 2 * sum(acmix_parts(x, projection_weight, weight, offsets, stride))


@register_flop_formula(_ops.acmix_backward)
def acmix_backward(
    grad: Any,
    out: Any,
    qkv: Any,
    x: Any,
    projection_weight: Any,
    projection_bias: Any,
    position: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    offsets: Any,
    stride: Any,
    *args: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Two gradients of both convolutions, and of attention the logits once more and four gradients."""
    projection, attention, convolution = acmix_parts(x, projection_weight, weight, offsets, stride)
    return 2 * (2 * projection + 5 * (attention // 2) + 2 * convolution)


def attend_as_published(
    q: Any, k: Any, v: Any, bias: Any, key_offsets: Any, offsets: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Table 1's ``2 k_a² C`` at the input resolution, whatever the stride, position terms left out."""
    return 4 * _pairs(k, offsets)


@register_flop_formula(_ops.group_convolution)
def group_convolution(
    x: Any, weight: Any, bias: Any, steps: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """One product for every weight and output pixel."""
    batch, _, height, width = x
    outputs = batch * ((height - 1) // steps[0] + 1) * ((width - 1) // steps[1] + 1)
    return 2 * int(outputs * prod(weight))


@register_flop_formula(_ops.group_convolution_backward)
def group_convolution_backward(
    grad: Any, x: Any, weight: Any, steps: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Two gradients, each with the products of the convolution."""
    return 2 * group_convolution(x, weight, None, steps)


@register_flop_formula(_ops.offset_convolution)
def offset_convolution(
    x: Any, weight: Any, bias: Any, offsets: Any, stride: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """One product for every weight and output pixel, with zeros beyond the border too, as a convolution is counted."""
    return group_convolution(x, weight, bias, stride)


@register_flop_formula(_ops.offset_convolution_backward)
def offset_convolution_backward(
    grad: Any, x: Any, weight: Any, offsets: Any, stride: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Two gradients, each with the products of the convolution."""
    return 2 * group_convolution(x, weight, None, stride)


@register_flop_formula(_ops.pixel_shift_attention)
def pixel_shift_attention(
    q: Any, k: Any, v: Any, weight: Any, bias: Any, offsets: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Products of queries and keys, the sum with its weights and, if there are values, their products with these."""
    return 2 * _pairs(q, offsets) * (2 if v is None else 3)


@register_flop_formula(_ops.pixel_shift_attention_backward)
def pixel_shift_attention_backward(
    grad: Any, q: Any, k: Any, v: Any, weight: Any, bias: Any, offsets: Any, *args: Any, **kwargs: Any
) -> int:
    """The similarities once more, the gradients of q, k, weight and similarities; with values three more products."""
    return 2 * _pairs(q, offsets) * (5 if v is None else 8)
