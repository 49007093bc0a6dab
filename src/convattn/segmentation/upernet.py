"""UPerNet (Xiao et al., "Unified perceptual parsing for scene understanding", ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convattn.segmentation._blocks import GridMeans, Norm, check_positive, classifier, conv_norm_relu, resize, size_of
from convattn.segmentation.backbones import FeatureLevels
from convattn.segmentation.segmenter import IGNORE_INDEX, AuxiliaryHead, Segmenter

POOL_SCALES = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """The pyramid pooling module of PSPNet (Zhao et al. 2017): means over grids, beside the map itself.

    For every scale s: average pooling to s x s, 1x1 convolution, norm, ReLU, bilinear upsampling; all concatenated
    with the map, then 3x3 convolution, norm, ReLU.

    Args:
        in_channels: of the map.
        channels: of every scale and of the result.
        scales: sides of the grids.
        norm: ``"batch"`` or ``"group"``.

    Example:
        >>> PyramidPooling(8, 4, (1, 2))(torch.zeros(2, 8, 5, 3)).shape
        torch.Size([2, 4, 5, 3])
    """

    def __init__(
        self, in_channels: int, channels: int, scales: Sequence[int] = POOL_SCALES, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(GridMeans(scale), conv_norm_relu(in_channels, channels, 1, norm)) for scale in scales
        )
        self.bottleneck = conv_norm_relu(in_channels + len(scales) * channels, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, channels, H, W]``."""
        return self.bottleneck(torch.cat([x, *(resize(scale(x), size_of(x)) for scale in self.scales)], 1))


class UPerNetDecoder(nn.Module):
    """Pyramid pooling of the coarsest map, FPN, fusion of all levels at the finest resolution, 1x1 classifier.

    Args:
        levels: the backbone's maps.
        num_classes: K.
        channels: of every convolution.
        norm: ``"batch"`` or ``"group"``.
        dropout: of the channels before the classifier.

    Example:
        >>> decoder = UPerNetDecoder(FeatureLevels((8, 16), (4, 8)), 3, channels=4, norm="batch", dropout=0.1)
        >>> decoder([torch.zeros(2, 8, 9, 5), torch.zeros(2, 16, 5, 3)]).shape
        torch.Size([2, 3, 9, 5])
    """

    def __init__(self, levels: FeatureLevels, num_classes: int, *, channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        *fine, coarsest = levels.channels
        self.pooling = PyramidPooling(coarsest, channels, norm=norm)
        self.laterals = nn.ModuleList(conv_norm_relu(width, channels, 1, norm) for width in fine)
        self.outputs = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm) for _ in fine)
        self.fusion = conv_norm_relu(len(levels.channels) * channels, channels, 3, norm)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The backbone's maps, finest first -> ``[B, K, h, w]`` at the resolution of the finest."""
        *fine, coarsest = features
        size = size_of(features[0])
        above = self.pooling(coarsest)
        fused = [resize(above, size)]
        for level, lateral, output in reversed(list(zip(fine, self.laterals, self.outputs, strict=True))):
            above = lateral(level) + resize(above, size_of(level))
            fused.insert(0, resize(output(above), size))
        return self.classifier(self.fusion(torch.cat(fused, 1)))


def upernet(
    backbone: nn.Module | str,
    *,
    num_classes: int,
    channels: int = 512,
    auxiliary_channels: int = 256,
    auxiliary_weight: float = 0.4,
    norm: Norm = "batch",
    dropout: float = 0.1,
    ignore_index: int = IGNORE_INDEX,
) -> Segmenter:
    """UPerNet on any of timm's backbones, with an auxiliary head for training.

    Pyramid pooling (1, 2, 3, 6) of the last map, an FPN with bilinear upsampling over the last four, all levels
    brought to the resolution of the finest and fused by a 3x3 convolution, a 1x1 classifier, the logits upsampled to
    the image. The auxiliary head, 3x3 and 1x1 on the last map but one, counts only in the losses. The defaults are
    those of the tables of Swin and ACmix.

    Args:
        backbone: a network made with ``timm.create_model(name, features_only=True)``, or its name; the new layers take
            its device and dtype.
        num_classes: K.
        channels: of every convolution of the decoder.
        auxiliary_channels: of the auxiliary head.
        auxiliary_weight: of its loss; 0: there is no such head.
        norm: ``"batch"`` as the tables, or ``"group"`` (32 groups), which depends on no batch size.
        dropout: of the channels before both classifiers.
        ignore_index: the label of pixels that are left out of the losses.

    Raises:
        TypeError: a backbone that publishes no feature maps.
        ValueError: numbers that are not positive, an unknown norm or name, an ``ignore_index`` that is a class.

    Example:
        >>> model = upernet("conv_resnet14", num_classes=11, channels=8, auxiliary_channels=8).eval()
        >>> model(torch.zeros(1, 3, 65, 47)).shape
        torch.Size([1, 11, 65, 47])
        >>> sorted(model(torch.zeros(1, 3, 65, 47), torch.zeros(1, 65, 47, dtype=torch.long)))
        ['auxiliary', 'segmentation']
    """
    check_positive(num_classes=num_classes, channels=channels, auxiliary_channels=auxiliary_channels)
    if not auxiliary_weight >= 0:
        raise ValueError(f"auxiliary_weight must be 0 (no auxiliary head) or more, got {auxiliary_weight!r}")

    def decoder(levels: FeatureLevels) -> nn.Module:
        return UPerNetDecoder(levels, num_classes, channels=channels, norm=norm, dropout=dropout)

    def auxiliary(levels: FeatureLevels) -> AuxiliaryHead:
        options: dict[str, Any] = {"weight": auxiliary_weight, "norm": norm, "dropout": dropout}
        return AuxiliaryHead(levels, num_classes, channels=auxiliary_channels, **options)

    return Segmenter(
        backbone,
        decoder,
        num_classes=num_classes,
        auxiliary=auxiliary if auxiliary_weight else None,
        ignore_index=ignore_index,
    )
