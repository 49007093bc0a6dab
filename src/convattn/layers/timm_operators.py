"""timm's operators as replacements of a convolution: for any size, with a convolution's strides."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack

import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from torch import Tensor

from convattn.layers._base import Geometry, Layer
from convattn.layers._checks import check_choice, check_counts, check_division
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers._pooling import average_pool
from convattn.layers.augmented import attend_everywhere
from convattn.ops.neighborhood import IntPair, as_pair

TimmOperatorKind: TypeAlias = Literal["halo", "lambda"]


class BottleneckAttention2d(Layer, BottleneckAttn):
    r"""The self-attention of Bottleneck Transformers: global, many heads, relative positions.

    .. math:: o_i = \sum_j w_{ij} v_j, \quad
        w_{ij} = \mathrm{softmax}_j\bigl(q_i \cdot (k_j + r_{y_j - y_i} + s_{x_j - x_i}) / \sqrt{d}\bigr)

    timm's ``BottleneckAttn`` with its parameters and their names, freed from the one size that it takes: the tables
    hold distances up to ``feature_size - 1`` and farther ones count as the farthest, so that a map up to that size
    gets exactly timm's ``BottleneckAttn(scale_pos_embed=True)``. Where it strides, an average pooling follows, as in
    the source; a cell that reaches beyond the map is the mean of what lies on it.

    Source: Srinivas et al., *Bottleneck Transformers for Visual Recognition*, CVPR 2021.

    Args:
        in_channels: C_in.
        out_channels: C.
        num_heads: N, 4 as in the source; must divide ``out_channels``.
        stride: distance between outputs.
        dilation: has no effect: every pixel sees every other.
        feature_size: rows and columns up to which distances have vectors of their own; 14, the largest map on which
            the source has the layer at 224x224.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> BottleneckAttention2d(16, 32, stride=2)(torch.randn(1, 16, 15, 9)).shape
        torch.Size([1, 32, 8, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: int = 4,
        feature_size: IntPair = 14,
        **geometry: Unpack[Geometry],
    ) -> None:
        check_counts(in_channels=in_channels, out_channels=out_channels)
        check_division(out_channels, num_heads)
        as_pair(geometry.get("dilation", 1), "dilation")
        super().__init__(
            in_channels,
            out_channels,
            feat_size=as_pair(feature_size, "feature_size"),
            num_heads=num_heads,
            dim_head=out_channels // num_heads,
            scale_pos_embed=True,
        )
        self.to(**self._factory(geometry))  # not every timm >= 1.0.21 takes them
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride = as_pair(geometry.get("stride", 1), "stride")

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        q, k, v = self.qkv(x).chunk(3, 1)
        tables = (self.pos_embed.height_rel, self.pos_embed.width_rel)
        return average_pool(attend_everywhere(q, k, v, tables, self.num_heads), self.stride)


class TimmOperator2d(DropIn):
    """timm's halo attention or lambda layer as a drop-in: any size, any stride.

    Halo attention works on blocks: the map is filled up to whole blocks with zeros, which is what timm puts around
    the outer blocks, and the output cropped. Where the operator strides, an average pooling follows (timm's
    ``avg_down``).

    Sources: Vaswani et al., *Scaling Local Self-Attention for Parameter Efficient Visual Backbones*, CVPR 2021;
    Bello, *LambdaNetworks: Modeling Long-Range Interactions without Attention*, ICLR 2021.

    Args:
        in_channels: C_in.
        out_channels: C; timm's lambda layer needs C_in.
        kind: ``"halo"`` or ``"lambda"``.
        stride: distance between outputs.
        dilation: must be 1; timm's operators have none.
        **options: timm's own, of ``timm.layers.HaloAttn`` (``num_heads``, ``block_size``, ``halo_size`` …) or
            ``timm.layers.LambdaLayer`` (``num_heads``, ``dim_head``, ``r`` …).

    Raises:
        ValueError: an unknown kind, a dilation, other channels than timm's operator can have; in ``forward``, an
            input of another shape.

    Example:
        >>> import torch
        >>> TimmOperator2d(16, 16, kind="halo", stride=2)(torch.randn(1, 16, 15, 9)).shape
        torch.Size([1, 16, 8, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kind: TimmOperatorKind,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        heads = options.get("num_heads", 4 if kind == "lambda" else 8)
        super().__init__(in_channels, out_channels, heads, stride=stride, dilation=dilation)
        check_choice("kind", kind, TimmOperatorKind)
        if self.dilation != (1, 1):
            raise ValueError(f"timm's {kind} operator has no dilation, got {dilation}; leave output_stride at 32")
        if kind == "lambda" and in_channels != out_channels:
            raise ValueError(f"timm's lambda layer keeps the channels, got {in_channels} to {out_channels}")
        layer = HaloAttn if kind == "halo" else LambdaLayer
        self.operator = layer(in_channels, out_channels, **options).to(device=device, dtype=dtype)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        height, width = x.shape[-2:]
        block = self.operator.block_size if isinstance(self.operator, HaloAttn) else 1
        filled: Tensor = self.operator(F.pad(x, (0, -width % block, 0, -height % block)))
        return average_pool(filled[..., :height, :width], self.stride)
