"""Building blocks of the segmentation networks."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.layers._checks import check_rates
from convattn.layers.normalisation import group_norm
from convattn.ops._recording import is_exporting

Norm: TypeAlias = Literal["batch", "group"]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains on one value a channel, where a batch has no variance.

    One image of a batch, pooled to one pixel, is such a value: it is normalised by the running statistics, which stay
    as they are, instead of an error in the last, incomplete batch of an epoch.

    Example:
        >>> import torch
        >>> BatchNorm(4).train()(torch.ones(1, 4, 1, 1)).flatten().round().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] <= 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation over 32 groups (fewer where the channels do not divide by 32).

    Raises:
        ValueError: an unknown norm.
    """
    if norm == "batch":
        return BatchNorm(channels)
    if norm == "group":
        return group_norm(channels)
    raise ValueError(f"norm must be one of {get_args(Norm)}, got {norm!r}")


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: Norm) -> nn.Sequential:
    """A convolution without bias that keeps the map's size, its normalisation and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, normalisation(norm, out_channels), nn.ReLU(inplace=True))


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, then a 1x1 convolution to the classes, drawn small as every dense head's is."""
    check_rates(dropout=dropout)
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(dropout), conv)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of a map to ``size``, pixels taken as areas."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width."""
    return x.shape[-2], x.shape[-1]


def check_positive(**numbers: int) -> None:
    """Raise unless every number is a positive integer."""
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name} must be a positive integer, got {number!r}")


class GridMeans(nn.AdaptiveAvgPool2d):
    """Means over a grid of cells, which overlap where they do not divide the map; also in a recorded program.

    Exporters know such a pooling only for a fixed size that the grid divides. There it is two matrix products.

    Example:
        >>> GridMeans(2)(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[[1.5000, 2.5000],
                  [1.5000, 2.5000]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, s, s]``."""
        if not is_exporting():
            return super().forward(x)
        cells: Any = self.output_size
        if cells == 1:
            return x.mean((2, 3), keepdim=True)
        rows, columns = (_shares(side, int(cells), x) for side in size_of(x))
        return rows @ x @ columns.transpose(0, 1)


def _shares(size: int, cells: int, x: Tensor) -> Tensor:
    """``[cells, size]``: what part each pixel has in the mean of each cell."""
    cell, pixel = torch.arange(cells, device=x.device)[:, None], torch.arange(size, device=x.device)
    first = (cell * size).div(cells, rounding_mode="floor")
    end = ((cell + 1) * size + cells - 1).div(cells, rounding_mode="floor")
    return ((pixel >= first) & (pixel < end)).to(x.dtype) / (end - first).to(x.dtype)
