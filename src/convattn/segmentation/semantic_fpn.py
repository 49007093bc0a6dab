"""Semantic-FPN (Kirillov et al., "Panoptic feature pyramid networks", CVPR 2019, section 3.1)."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log2

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from convattn.segmentation._blocks import Norm, check_positive, classifier, conv_norm_relu, resize, size_of
from convattn.segmentation.backbones import FeatureLevels
from convattn.segmentation.segmenter import IGNORE_INDEX, Segmenter


class SemanticBranch(nn.Module):
    """One level of the pyramid brought to the resolution of the finest.

    Each stage is a 3x3 convolution, normalisation, ReLU and 2x bilinear upsampling; the finest level has one stage
    without upsampling. Sizes are those of maps halved upwards, so that every stage of an odd-sized image fits.

    Args:
        in_channels: of the level.
        channels: of every stage.
        doublings: how often the resolution is doubled.
        norm: ``"batch"`` or ``"group"``.

    Example:
        >>> import torch
        >>> SemanticBranch(8, 4, doublings=2)(torch.zeros(1, 8, 3, 3), (9, 10)).shape
        torch.Size([1, 4, 9, 10])
    """

    def __init__(self, in_channels: int, channels: int, doublings: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.doublings = doublings
        widths = [in_channels] + [channels] * max(1, doublings)
        self.stages = nn.ModuleList(conv_norm_relu(before, after, 3, norm) for before, after in pairwise(widths))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, channels, *size]``."""
        for index, stage in enumerate(self.stages):
            x = stage(x)
            left = 2 ** max(0, self.doublings - 1 - index)
            if self.doublings:
                x = resize(x, ((size[0] + left - 1) // left, (size[1] + left - 1) // left))
        return x


class SemanticFPNDecoder(nn.Module):
    """FPN, a branch for every level, their sum and a 1x1 classifier.

    Args:
        levels: the backbone's maps.
        num_classes: K.
        pyramid_channels: of the FPN.
        channels: of the branches.
        norm: of the branches; the FPN has none.
        dropout: of the channels before the classifier.

    Example:
        >>> import torch
        >>> decoder = SemanticFPNDecoder(FeatureLevels((8, 16), (4, 8)), 3, 8, 4, "batch", 0.1)
        >>> decoder([torch.zeros(1, 8, 9, 5), torch.zeros(1, 16, 5, 3)]).shape
        torch.Size([1, 3, 9, 5])
    """

    def __init__(
        self, levels: FeatureLevels, num_classes: int, pyramid_channels: int, channels: int, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(levels.channels), pyramid_channels)
        doublings = [ceil(log2(reduction / levels.reductions[0])) for reduction in levels.reductions]
        self.branches = nn.ModuleList(SemanticBranch(pyramid_channels, channels, count, norm) for count in doublings)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The backbone's maps, finest first -> ``[B, K, h, w]`` at the resolution of the finest."""
        pyramid = list(self.fpn({str(index): level for index, level in enumerate(features)}).values())
        size = size_of(pyramid[0])
        summed = self.branches[0](pyramid[0], size)
        for branch, level in zip(list(self.branches)[1:], pyramid[1:], strict=True):
            summed = summed + branch(level, size)
        return self.classifier(summed)


def semantic_fpn(
    backbone: nn.Module | str,
    *,
    num_classes: int,
    pyramid_channels: int = 256,
    channels: int = 128,
    norm: Norm = "batch",
    dropout: float = 0.1,
    ignore_index: int = IGNORE_INDEX,
) -> Segmenter:
    """Semantic-FPN on any of timm's backbones.

    The last four maps of the backbone go through an FPN (1x1 lateral convolutions, nearest upsampling, 3x3
    convolutions); each level is brought to the resolution of the finest, 1/4 of the image for most backbones, by
    stages of 3x3 convolution, normalisation, ReLU and 2x bilinear upsampling; the sum is classified by a 1x1
    convolution, and the logits are upsampled to the image. The defaults are those of the tables of PVT and ACmix.

    Args:
        backbone: a network made with ``timm.create_model(name, features_only=True)``, or its name; the new layers take
            its device and dtype.
        num_classes: K.
        pyramid_channels: of the FPN.
        channels: of the upsampling stages.
        norm: ``"batch"`` as PVT's and ACmix's tables, or ``"group"`` (32 groups) as the source.
        dropout: of the channels before the classifier.
        ignore_index: the label of pixels that are left out of the loss.

    Raises:
        TypeError: a backbone that publishes no feature maps.
        ValueError: numbers that are not positive, an unknown norm or name, an ``ignore_index`` that is a class.

    Example:
        >>> import torch
        >>> model = semantic_fpn("conv_resnet14", num_classes=11, pyramid_channels=16, channels=8).eval()
        >>> model(torch.zeros(1, 3, 65, 47)).shape
        torch.Size([1, 11, 65, 47])
    """
    check_positive(num_classes=num_classes, pyramid_channels=pyramid_channels, channels=channels)

    def decoder(levels: FeatureLevels) -> nn.Module:
        return SemanticFPNDecoder(levels, num_classes, pyramid_channels, channels, norm, dropout)

    return Segmenter(backbone, decoder, num_classes=num_classes, ignore_index=ignore_index)
