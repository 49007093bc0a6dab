"""FLOP formulas of the operators, known to any ``torch.utils.flop_counter.FlopCounterMode`` as they are defined.

Each gives multiply-adds, from an operator's inputs with shapes in place of tensors. A FLOP counter counts a
multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.flop_counter import register_flop_formula

from convattn.ops._operator import Operator
from convattn.ops._products import aggregate, correlate, scatter
from convattn.ops.acmix import operator as acmix
from convattn.ops.attend import operator as attend
from convattn.ops.group_convolution import operator as group_convolution
from convattn.ops.neighborhood import Neighborhood, strided_size
from convattn.ops.offset_convolution import operator as offset_convolution
from convattn.ops.pixel_shift import operator as pixel_shift

Convention: TypeAlias = Literal["counted", "published"]
Count: TypeAlias = Callable[[Any], int]


def _register(operator: Operator[Any], forward: Count, backward: Count | None = None) -> None:
    """Tell the counter what an operator and, if it is an operator of its own, its gradient cost."""
    ops = torch.ops.convattn

    def flops(*arguments: Any, out_shape: Any = None) -> int:
        return 2 * int(forward(operator.inputs_of(arguments)))

    register_flop_formula(getattr(ops, operator.name))(flops)
    if backward is None:
        return

    def gradient_flops(*arguments: Any, out_shape: Any = None) -> int:
        return 2 * int(backward(operator.inputs_of(arguments[operator.num_saved :])))

    register_flop_formula(getattr(ops, f"{operator.name}_backward"))(gradient_flops)


def pairs(shape: Sequence[int], nbhd: Neighborhood) -> int:
    """Multiply-adds of one product for every channel and pixel of a map ``[B, C, Ho, Wo]`` and every offset.

    Example:
        >>> pairs((1, 8, 5, 5), Neighborhood.window(3))
        1800
    """
    return prod(shape) * len(nbhd)


def _outputs(x: Any, stride: Any) -> int:
    """Output pixels of all images."""
    batch, _, height, width = x.x
    return int(batch * strided_size(height, stride[0]) * strided_size(width, stride[1]))


def _grouped(x: Any) -> int:
    return _outputs(x, x.steps) * prod(x.weight)


def _of_offsets(x: Any) -> int:
    return _outputs(x, x.nbhd.stride) * prod(x.weight)


def acmix_parts(x: Any, convention: Convention = "counted") -> tuple[int, int, int]:
    """Multiply-adds of the projection, the attention path and the convolution path.

    Args:
        x: the inputs of ``acmix`` with shapes in place of tensors.
        convention: ``"published"``: attention at the resolution of the input.
    """
    (batch, c_in, height, width), (maps, kernel_h, kernel_w, heads, head_dim) = x.x, x.weight
    outputs, channels = _outputs(x, x.nbhd.stride), heads * head_dim
    queries = batch * height * width if convention == "published" else outputs
    attention = 2 * queries * channels * len(x.nbhd)
    convolution = outputs * channels * maps * kernel_h * kernel_w
    return batch * height * width * x.projection_weight[0] * c_in, attention, convolution


def _acmix_gradient(x: Any) -> int:
    """Two gradients of both convolutions, and of attention the logits once more and four gradients."""
    projection, attention, convolution = acmix_parts(x)
    return 2 * projection + 5 * (attention // 2) + 2 * convolution


def attend_as_published(*arguments: Any, out_shape: Any = None) -> int:
    """FLOPs by table 1's ``2 k_a² C`` at the input resolution, whatever the stride, position terms left out."""
    x: Any = attend.inputs_of(arguments)
    return 4 * pairs(x.k, x.nbhd)


# Logits and weighted sum, with key_offsets their products too. Their gradient: the logits once more and four gradients,
# with key_offsets three more.
_register(
    attend,
    lambda x: pairs(x.q, x.nbhd) * (2 if x.key_offsets is None else 3),
    lambda x: pairs(x.q, x.nbhd) * (5 if x.key_offsets is None else 8),
)
# Products of queries and keys, the sum with its weights and, if there are values, their products with these. Their
# gradient: the similarities once more, the gradients of q, k, weight and similarities; with values three more products.
_register(
    pixel_shift,
    lambda x: pairs(x.q, x.nbhd) * (2 if x.v is None else 3),
    lambda x: pairs(x.q, x.nbhd) * (5 if x.v is None else 8),
)
# One product a channel and offset.
_register(correlate, lambda x: pairs(x.q, x.nbhd))
_register(aggregate, lambda x: pairs((*x.v[:2], *x.weights[3:]), x.nbhd))
_register(scatter, lambda x: pairs(x.u, x.nbhd))
_register(acmix, lambda x: sum(acmix_parts(x)), _acmix_gradient)
# One product for every weight and output pixel, with zeros beyond the border too, as a convolution is counted. Two
# gradients, each with the products of the convolution.
_register(group_convolution, _grouped, lambda x: 2 * _grouped(x))
_register(offset_convolution, _of_offsets, lambda x: 2 * _of_offsets(x))
