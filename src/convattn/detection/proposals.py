"""The first part of an R-CNN: boxes that may hold an object."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.rpn import RegionProposalNetwork

BoxLoss: TypeAlias = Literal["smooth_l1", "l1"]
"""How box codes are compared with the true ones: torchvision's smooth L1, or plain L1 as in Detectron2."""

BETAS: dict[BoxLoss, float] = {"smooth_l1": 1 / 9, "l1": 0.0}
"""Below this difference the loss is quadratic."""


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with its box loss open.

    Args:
        *parts: of torchvision's network.
        box_loss: see :data:`BoxLoss`.
        **options: of torchvision's network.

    Example:
        >>> from convattn.detection import faster_rcnn
        >>> faster_rcnn("acmix_resnet14", num_classes=3, box_loss="l1").rpn.box_loss
        'l1'
    """

    def __init__(self, *parts: nn.Module, box_loss: BoxLoss = "smooth_l1", **options: Any) -> None:
        super().__init__(*parts, **options)
        self.box_loss: BoxLoss = box_loss

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of objectness and of boxes, over a sample of the anchors."""
        objects, others = (torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels))
        sampled, truth = torch.cat([objects, others]), torch.cat(regression_targets)[objects]
        beta = BETAS[self.box_loss]
        boxes = functional.smooth_l1_loss(pred_bbox_deltas[objects], truth, beta=beta, reduction="sum")
        logits, wanted = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        return functional.binary_cross_entropy_with_logits(logits, wanted), boxes / sampled.numel()
