"""What the Triton kernels do in the networks, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from convattn.ops import Neighborhood
from convattn.ops.aggregate import triton as aggregate
from convattn.ops.attend import triton as attend
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.correlate import triton as correlate
from convattn.ops.pixel_shift import triton as pixel_shift
from convattn.ops.pixel_shift.inputs import PixelShiftInputs
from convattn.ops.scatter import triton as scatter

Work: TypeAlias = Callable[[], object]

BATCH, HEADS = 64, 4
BFLOAT, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32
DIRECTIONS = Neighborhood.directions()
SCATTERED = tuple((dy, dx) for r in (1, 2, 3) for dy in (-r, 0, r) for dx in (-r, 0, r) if (dy, dx) != (0, 0))
WINDOW = Neighborhood.window(7)
STRIDED = Neighborhood.window(7, stride=2)
ZEROS = Neighborhood.window(7, border="zeros")
RESNET = ((64, 56), (128, 28), (256, 14), (512, 7))
STRIDED_RESNET = ((128, 56), (256, 28), (512, 14))


def maps(channels: int, *sizes: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Maps of these sizes on the meta device, in channels_last."""
    meta = [torch.empty(BATCH, channels, *size, dtype=dtype, device="meta") for size in sizes]
    return [x.to(memory_format=torch.channels_last) for x in meta]


def attention(
    channels: int,
    size: int,
    nbhd: Neighborhood,
    dtype: torch.dtype,
    form: Literal["tiles", "tables"] = "tiles",
) -> Work:
    """Forward and backward of ``attend``; with tables by the general kernels."""
    tables = form == "tables"
    bias = torch.empty(1, len(nbhd), dtype=dtype, device="meta") if tables else None
    vectors = torch.empty(HEADS, len(nbhd), channels // HEADS, dtype=dtype, device="meta") if tables else None
    q, k, v = maps(channels, nbhd.output_size(size, size), (size, size), (size, size), dtype=dtype)
    inputs = AttendInputs(q, k, v, bias, vectors, nbhd, HEADS, 0.25)
    return lambda: (attend.attend(inputs), attend.attend_backward(q, inputs))


def offset_wise(channels: int, num_heads: int, size: int, nbhd: Neighborhood, dtype: torch.dtype) -> Work:
    """The three operators that are each other's gradients."""
    q, k = maps(channels, nbhd.output_size(size, size), (size, size), dtype=dtype)
    weights = torch.empty(BATCH, num_heads, len(nbhd), *q.shape[-2:], dtype=dtype, device="meta")
    return lambda: (
        correlate.correlate(q, k, nbhd, num_heads),
        aggregate.aggregate(weights, k, nbhd),
        scatter.scatter(weights, q, nbhd, (size, size)),
    )


def pixel_shift_attention(
    channels: int,
    num_heads: int,
    size: int,
    dtype: torch.dtype,
    *,
    nbhd: Neighborhood = DIRECTIONS,
    reading: Literal["value", "product"] = "value",
) -> Work:
    """Forward and backward of X-volution's attention, as its layer calls it: parameters in float32."""
    q, k, v = maps(channels, nbhd.output_size(size, size), (size, size), (size, size), dtype=dtype)
    weight, bias = (torch.empty(len(nbhd), n, device="meta") for n in (channels, num_heads))
    inputs = PixelShiftInputs(q, k, v, weight, None, nbhd, num_heads)
    if reading == "product":
        inputs = inputs._replace(v=None, bias=bias.t())
    return lambda: (pixel_shift.pixel_shift_attention(inputs), pixel_shift.pixel_shift_attention_backward(q, inputs))


def networks(dtype: torch.dtype) -> Mapping[str, Work]:
    """Every operator at the shapes of the networks' stages."""
    return {
        **{f"attend {c}@{s}": attention(c, s, WINDOW, dtype) for c, s in RESNET},
        **{f"attend {c}@{s}, stride 2": attention(c, s, STRIDED, dtype) for c, s in STRIDED_RESNET},
        **{f"attend {c}@{s}, zero border": attention(c, s, ZEROS, dtype) for c, s in ((96, 56), (64, 56))},
        "attend 256@14, tables": attention(256, 14, ZEROS, dtype, "tables"),
        **{f"pixel shift {c}@{s}": pixel_shift_attention(c, 1, s, dtype) for c, s in RESNET},
        **{f"SAN {c}@{s}": offset_wise(c, c // 8, s, WINDOW, dtype) for c, s in ((64, 56), (256, 14))},
    }
