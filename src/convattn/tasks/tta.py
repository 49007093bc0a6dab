"""Test-time augmentation: a network that looks at an image and at its mirror image, and answers with both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

MERGE_IOU = 0.5
"""Boxes of one class that overlap more than this are one object; the surer one is kept."""


class MirroredLogits(nn.Module):
    """The mean of the probabilities of images ``[B, 3, H, W]`` and of their mirror images, as logits.

    Args:
        model: Gives logits ``[B, K]``, or ``[B, K, H, W]``, which are mirrored back.

    Example:
        >>> model = MirroredLogits(nn.Flatten())
        >>> model(torch.tensor([[[[0.0, 1.0]]]])).softmax(1)
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        first, second = self.model(images), self.model(images.flip(-1))
        second = second.flip(-1) if second.ndim == 4 else second
        both = torch.stack([one.float().log_softmax(1) for one in (first, second)])
        return both.logsumexp(0) - torch.log(torch.tensor(2.0))


class MirroredObjects(nn.Module):
    """The objects on images and on their mirror images; of one that both found, the surer answer.

    Args:
        model: A detector of torchvision's form.
        most: Objects that are kept of an image.
    """

    def __init__(self, model: nn.Module, most: int = 100) -> None:
        super().__init__()
        self.model, self.most = model, most

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return torchvision's result for each image."""
        plain, mirrored = self.model(images), self.model([image.flip(-1) for image in images])
        widths = [image.shape[-1] for image in images]
        return [self._merged(*pair) for pair in zip(plain, mirrored, widths, strict=True)]

    def _merged(self, plain: dict[str, Tensor], mirrored: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        x1, y1, x2, y2 = mirrored["boxes"].unbind(-1)
        turned: dict[str, Any] = {**mirrored, "boxes": torch.stack([width - x2, y1, width - x1, y2], -1)}
        if "masks" in turned:
            turned["masks"] = turned["masks"].flip(-1)
        both = {key: torch.cat([plain[key], turned[key]]) for key in plain}
        kept = batched_nms(both["boxes"].float(), both["scores"].float(), both["labels"], MERGE_IOU)[: self.most]
        return {key: value[kept] for key, value in both.items()}
