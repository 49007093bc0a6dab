"""What every segmentation network has in common: backbone, decoder, auxiliary head and losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.segmentation._blocks import Norm, check_positive, classifier, conv_norm_relu, resize, size_of
from convattn.segmentation.backbones import FeatureLevels, build_backbone

IGNORE_INDEX = 255


class AuxiliaryHead(nn.Module):
    """A small fully convolutional head on the backbone's last map but one, for training only: 3x3, norm, ReLU, 1x1.

    Args:
        levels: the backbone's maps. Where there is one alone, the head is on that.
        num_classes: K.
        channels: between the two convolutions.
        weight: of its loss.
        norm: ``"batch"`` or ``"group"``.
        dropout: of the channels before the 1x1.

    Example:
        >>> levels = FeatureLevels((8, 16), (4, 8))
        >>> head = AuxiliaryHead(levels, 3, channels=4, weight=0.4, norm="batch", dropout=0.1)
        >>> head([torch.zeros(1, 8, 5, 5), torch.zeros(1, 16, 3, 3)]).shape
        torch.Size([1, 3, 5, 5])
    """

    def __init__(
        self, levels: FeatureLevels, num_classes: int, *, channels: int, weight: float, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        self.level, self.weight = max(-2, -len(levels.channels)), weight
        self.conv = conv_norm_relu(levels.channels[self.level], channels, 3, norm)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The backbone's maps -> ``[B, K, h, w]`` at the resolution of its level."""
        return self.classifier(self.conv(features[self.level]))


class Segmenter(nn.Module):
    """A semantic segmentation network: a score for every class at every pixel of the image.

    ``model(images)`` gives the logits at the images' resolution. ``model(images, targets)`` gives the losses by name,
    each with its weight, whose sum is to be minimised: ``"segmentation"``, and ``"auxiliary"`` where there is an
    auxiliary head; without targets that head is not computed. A loss is the mean cross entropy of the pixels that have
    a label, 0 where none has.

    Images of every size are taken: for a backbone whose patches must fill the image, timm's vision transformers, it is
    enlarged with zeros below and to the right, and the logits are cut back.

    Args:
        backbone: gives the feature maps; see :func:`semantic_fpn`.
        decoder: makes, from what the backbone says of its maps, the module from these maps to ``[B, K, h, w]``.
        num_classes: K.
        auxiliary: makes the auxiliary head likewise; None: there is none.
        ignore_index: the label of pixels that are left out of the losses.

    Raises:
        TypeError, ValueError: as :func:`semantic_fpn`.

    Example:
        >>> import timm
        >>> network = timm.create_model("resnet10t", features_only=True)
        >>> def decoder(levels):
        ...     return nn.Sequential(Last(), nn.Conv2d(levels.channels[-1], 4, 1))
        >>> class Last(nn.Module):
        ...     def forward(self, features):
        ...         return features[-1]
        >>> model = Segmenter(network, decoder, num_classes=4)
        >>> model(torch.zeros(2, 3, 65, 33)).shape
        torch.Size([2, 4, 65, 33])
        >>> list(model(torch.zeros(2, 3, 65, 33), torch.zeros(2, 65, 33, dtype=torch.long)))
        ['segmentation']
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        decoder: Callable[[FeatureLevels], nn.Module],
        *,
        num_classes: int,
        auxiliary: Callable[[FeatureLevels], AuxiliaryHead] | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        check_ignore_index(ignore_index, num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.backbone = build_backbone(backbone)
        self.levels = FeatureLevels.of(self.backbone)
        # what is added is on the device of the backbone, the meta device included
        like = next(self.backbone.parameters(), torch.empty(0))
        with torch.device(like.device):
            self.decoder = decoder(self.levels).to(like.dtype)
            self.auxiliary = auxiliary(self.levels).to(like.dtype) if auxiliary is not None else None

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits, or with targets the losses.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            targets: label maps ``[B, H, W]``, integers in [0, K) or ``ignore_index``.

        Returns:
            ``[B, K, H, W]``, or the losses by name.

        Raises:
            ValueError: images or targets of another shape.
            TypeError: images that are not of floating point, targets that are.
        """
        _check_images(images)
        if targets is not None:
            targets = _checked_targets(targets, images)
        padded = _pad(images, self.levels.divisor)
        features = self.levels.select(self.backbone(padded))
        logits = _at(self.decoder(features), padded, images)
        if targets is None:
            return logits
        losses = {"segmentation": self._loss(logits, targets)}
        if self.auxiliary is not None:
            logits = _at(self.auxiliary(features), padded, images)
            losses["auxiliary"] = self.auxiliary.weight * self._loss(logits, targets)
        return losses

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        total = F.cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction="sum")
        return total / (targets != self.ignore_index).sum().clamp(min=1)


def check_ignore_index(ignore_index: int, num_classes: int) -> None:
    """Raise where a class would silently be left out."""
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index={ignore_index} is one of the {num_classes} classes, which would then never be learned nor "
            "measured: give ignore_index=-1 and mark the pixels to leave out with it"
        )


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images must be [B, 3, H, W], got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must be normalised floating point numbers, got {images.dtype}")


def _pad(images: Tensor, divisor: tuple[int, int]) -> Tensor:
    """Zeros, the mean colour, below and to the right, up to multiples of the divisor."""
    if divisor == (1, 1):
        return images
    height, width = size_of(images)
    return F.pad(images, (0, -width % divisor[1], 0, -height % divisor[0]))


def _at(logits: Tensor, padded: Tensor, images: Tensor) -> Tensor:
    """The logits of a padded image at every pixel of the image."""
    height, width = size_of(images)
    return resize(logits, size_of(padded))[..., :height, :width]


def _checked_targets(targets: Tensor, images: Tensor) -> Tensor:
    expected = (images.shape[0], images.shape[2], images.shape[3])
    if tuple(targets.shape) != expected:
        raise ValueError(f"targets must be label maps [B, H, W] = {expected} as the images, got {tuple(targets.shape)}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        raise TypeError(f"targets must be integers, one label a pixel, got {targets.dtype}")
    return targets.long()
