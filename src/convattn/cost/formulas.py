"""FLOP formulas of the operators, known to any ``torch.utils.flop_counter.FlopCounterMode`` after this import.

A FLOP counter counts a multiply-add as two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import convattn.ops  # noqa: F401  (defines the operators)

_ops = torch.ops.convattn


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


def attend_as_published(
    q: Any, k: Any, v: Any, bias: Any, key_offsets: Any, offsets: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Table 1's ``2 k_a² C`` at the input resolution, whatever the stride, position terms left out."""
    return 4 * _pairs(k, offsets)
