"""Pooling of regions of interest over the levels of a pyramid, with aligned pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign whose pixel centres lie half a pixel from the corner, each box on the level that fits its size.

    torchvision's ``MultiScaleRoIAlign`` shifts all by half a pixel (``aligned=False``) and guesses the strides of the
    levels from the first image that it meets; here they are given. A box of area s² is pooled from the level of stride
    2^k, k = floor(4 + log2(s / 224)), as near to it as there is.

    Args:
        names: of the levels.
        strides: of the levels, powers of two that double.
        output_size: side of the pooled maps.
        sampling_ratio: samples a bin along each side; 0: as many as the bin has pixels, rounded up.

    Raises:
        ValueError: strides that do not double, or not one for each name.

    Example:
        >>> import torch
        >>> pool = AlignedRoIAlign(["0"], [1], 2)
        >>> x = torch.arange(16.0).view(1, 1, 4, 4)
        >>> pool({"0": x}, [torch.tensor([[0.0, 0.0, 2.0, 2.0]])], [(4, 4)]).flatten()
        tensor([0., 1., 4., 5.])
    """

    def __init__(
        self,
        names: Sequence[str],
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__(list(names), output_size, sampling_ratio)
        if len(names) != len(strides) or any(2 * a != b for a, b in pairwise(strides)):
            raise ValueError(f"the strides must double, one for each of the levels {list(names)}, got {list(strides)}")
        self.strides = tuple(strides)
        finest = math.log2(strides[0])
        if finest != int(finest):
            raise ValueError(f"the strides must be powers of two, got {list(strides)}")
        first = int(finest)
        mapper = LevelMapper(first, first + len(strides) - 1)
        self.scales, self.map_levels = [1 / stride for stride in strides], mapper

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Levels ``[B, C, h, w]`` and each image's boxes ``[n, 4]`` -> ``[N, C, output_size, output_size]``."""
        levels = [x[name] for name in self.featmap_names]
        image = torch.cat([torch.full_like(b[:, :1], index) for index, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(list(boxes))], 1).to(levels[0].dtype)
        which = self.map_levels(boxes)
        pooled = levels[0].new_zeros(rois.shape[0], levels[0].shape[1], *self.output_size)
        for index, (level, scale) in enumerate(zip(levels, self.scales, strict=True)):
            chosen = torch.where(which == index)[0]
            values = roi_align(level, rois[chosen], self.output_size, scale, self.sampling_ratio, aligned=True)
            pooled = pooled.index_copy(0, chosen, values.to(pooled.dtype))
        return pooled
