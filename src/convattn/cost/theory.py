"""What table 1 of ACmix says that an operator costs, from its shapes alone: the other side of the count.

Table 1 gives local attention and ACmix over it. The same sums for the other attention paths are written in its terms:
every path counts its products, the projections before it are stage I.
"""

from __future__ import annotations

from math import prod
from typing import Any

from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from timm.models.vision_transformer import Attention as TimmAttention
from torch import nn

from convattn.cost.operators import Path
from convattn.layers import ACmix, LocalAttention2d
from convattn.layers.global_attention import GlobalAttention
from convattn.layers.local_attention import LocalAttention, TablePosition
from convattn.layers.patchwise import PatchwiseAttention, PatchwiseAttention2d
from convattn.layers.shift_convolution import ShiftConvolution
from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from convattn.ops.formulas import Convention


def by_formula(operator: nn.Module, inputs: tuple[Any, ...], convention: Convention) -> dict[Path, int] | None:
    """Multiply-adds of every path of an operator by the formulas, or None for one that they do not cover.

    Args:
        operator: not reparameterized.
        inputs: what it was called with: shapes in place of tensors.
        convention: see :func:`convattn.cost.count`.

    Example:
        >>> by_formula(ACmix(64, 64), ((1, 64, 56, 56),), "published")["stage I"] == 3 * 64**2 * 56**2
        True
    """
    shape = inputs[0]
    if isinstance(operator, nn.Conv2d) and len(shape) == 4:
        return {"stage I": _convolution(operator, shape)}
    if (
        isinstance(operator, (ACmix, LocalAttention2d, PatchwiseAttention2d))
        and getattr(operator, "reparameterized", None) is None
    ):
        return _projected(operator, shape, convention)
    if isinstance(operator, SpatialReductionAttention) and getattr(operator, "reparameterized", None) is None:
        return _reduced(operator, shape, inputs[1])
    if isinstance(operator, WindowAttention2d):
        projected = 3 * operator.channels**2 * prod(shape[-2:])
        return {"stage I": projected, "attention": _windows(operator, operator.channels, shape[-2:])}
    if isinstance(operator, (TimmWindowAttention, TimmAttention)) and len(shape) == 3:
        batch, tokens, channels = shape
        attention = 2 * tokens * channels + channels * channels
        return {"stage I": batch * tokens * 3 * channels * channels, "attention": batch * tokens * attention}
    return None


def _convolution(conv: nn.Conv2d, shape: tuple[int, ...]) -> int:
    """``k_c² C²`` a pixel."""
    outputs = _pixels(shape[2:], (conv.stride[0], conv.stride[1]))
    return shape[0] * outputs * prod(conv.kernel_size) * conv.in_channels * conv.out_channels // conv.groups


def _projected(
    operator: ACmix | LocalAttention2d | PatchwiseAttention2d, shape: tuple[int, ...], convention: Convention
) -> dict[Path, int] | None:
    batch, size = (shape[0] if len(shape) == 4 else 1), shape[-2:]
    attention = _attention(operator.attention, operator.out_channels, size, convention)
    if attention is None:
        return None
    projected = operator.projection.out_channels * operator.in_channels
    found: dict[Path, int] = {"stage I": batch * prod(size) * projected, "attention": batch * attention}
    if isinstance(operator, ACmix):
        found |= {path: batch * macs for path, macs in _convolution_path(operator.convolution, size).items()}
    return found


def _convolution_path(path: ShiftConvolution, size: tuple[int, ...]) -> dict[Path, int]:
    """``3 k_c² C`` a pixel, 3 C being the channels of q, k and v, and ``k_c⁴ C`` an output."""
    return {
        "fc": prod(path.kernel_size) * path.maps * path.head_dim * prod(size),
        "group convolution": _moved(path) * _pixels(size, path.stride),
    }


def _moved(path: ShiftConvolution) -> int:
    """What shift and sum take for an output of all channels: with one kernel a head channel one output of it."""
    outputs = path.num_heads * path.head_dim if path.has_kernel_by_output else path.head_dim
    return 0 if path.shift == "tensor" else prod(path.kernel_size) ** 2 * outputs


def _attention(path: nn.Module, channels: int, size: tuple[int, ...], convention: Convention) -> int | None:
    """``2 k_a² C`` a query, k_a² being the number of its keys, and ``C²`` where a linear layer follows.

    Patchwise: ``(C_qk (k_a² + 1) + C/s k_a²) C/s`` for the weights and ``k_a² C`` for the sum.
    """
    if isinstance(path, LocalAttention):
        neighborhood = path.neighborhood
        queries = prod(size) if convention == "published" else _pixels(size, neighborhood.stride)
        with_table = isinstance(path.position, TablePosition) and convention == "counted"
        return (3 if with_table else 2) * len(neighborhood) * channels * queries
    if isinstance(path, WindowAttention):
        return _windows(path, channels, size)
    if isinstance(path, GlobalAttention):
        queries = _pixels(size, path.queries.stride)
        return queries * (prod(size) * (path.query_channels + channels) + _followed(path) * channels**2)
    if isinstance(path, PatchwiseAttention):
        taps, heads = len(path.neighborhood), channels // path.share
        return prod(size) * ((path.query_channels * (taps + 1) + heads * taps) * heads + taps * channels)
    return None


def _windows(path: WindowAttention, channels: int, size: tuple[int, ...]) -> int:
    whole = prod(-(-side // step) * step for side, step in zip(size, path.window_size, strict=True))
    return 2 * prod(path.window_size) * channels * whole + _followed(path) * channels**2 * prod(size)


def _followed(path: WindowAttention | GlobalAttention) -> int:
    return int(path.proj is not None)


def _reduced(operator: SpatialReductionAttention, shape: tuple[int, ...], size: tuple[int, int]) -> dict[Path, int]:
    """PVT: keys and values of ``r x r`` pixels each; fc takes q at full size and k and v at theirs."""
    batch, tokens, channels = shape
    projection = operator.projection
    ratio = projection.sr_ratio
    cells = prod(-(-side // ratio) for side in size)
    keys = cells + projection.num_prefix_tokens
    reduction = cells * ratio**2 * channels**2 if ratio > 1 else 0
    found: dict[Path, int] = {
        "stage I": batch * ((tokens + 2 * keys) * channels**2 + reduction),
        "attention": batch * tokens * (2 * keys * channels + channels**2),
    }
    if isinstance(operator, SpatialReductionACmix) and isinstance(operator.convolution, ShiftConvolution):
        path, pixels = operator.convolution, cells * ratio**2
        taps = prod(path.kernel_size)
        found["fc"] = batch * taps * channels * (pixels + 2 * cells)
        found["group convolution"] = batch * _moved(path) * pixels
    return found


def _pixels(size: tuple[int, ...], stride: tuple[int, int]) -> int:
    return prod((side - 1) // step + 1 for side, step in zip(size, stride, strict=True))
