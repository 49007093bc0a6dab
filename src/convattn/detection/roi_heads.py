"""The second part of an R-CNN: from proposals to boxes and masks, in one stage or in a cascade of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from convattn.detection.proposals import BETAS, BoxLoss

Sizes = list[tuple[int, int]]
Targets = list[dict[str, Tensor]]


class SingleStageRoIHeads(RoIHeads):
    """torchvision's RoIHeads that also take images without proposals and class-agnostic boxes.

    An image without a proposal gets one that is the whole image: a loss over no region is no number.

    Args:
        *parts: of torchvision's RoIHeads.
        box_loss: see :data:`BoxLoss`.
        **options: of torchvision's RoIHeads.

    Example:
        >>> from convattn.detection import faster_rcnn
        >>> type(faster_rcnn("acmix_resnet14", num_classes=3).roi_heads).__name__
        'SingleStageRoIHeads'
    """

    def __init__(self, *parts: nn.Module, box_loss: BoxLoss = "smooth_l1", **options: Any) -> None:
        super().__init__(*parts, **options)
        self.box_loss: BoxLoss = box_loss

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections (in eval mode) and losses (in training)."""
        proposals = some_proposals(proposals, image_shapes)
        if self.training:
            return [], stage_losses(self, features, proposals, image_shapes, targets).losses
        return super().forward(features, proposals, image_shapes)

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: Sizes
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels of every image, best first."""
        codes = codes_per_class(box_regression, class_logits.shape[1])
        return super().postprocess_detections(class_logits, codes, proposals, image_shapes)


class CascadeRoIHeads(nn.Module):
    """A cascade of RoI heads: each stage starts from the boxes of the one before and asks more of a match.

    In training every stage samples from the boxes of the stage before and the true ones, and its losses are weighed.
    In eval mode the class probabilities are averaged over the stages, each of which looks at its own boxes; the boxes
    are those of the last stage, the masks the mean of all stages' on them.

    Source: Cai and Vasconcelos, *Cascade R-CNN: High Quality Object Detection and Instance Segmentation*, TPAMI 2019.

    Args:
        stages: the heads, from the first on; what is for prediction (thresholds, count) is read from the last.
        loss_weights: of every stage.

    Raises:
        ValueError: no stages, another number of weights, some stages with masks and some without.

    Example:
        >>> from convattn.detection import cascade_rcnn
        >>> heads = cascade_rcnn("acmix_resnet14", num_classes=3).roi_heads
        >>> [stage.proposal_matcher.high_threshold for stage in heads.stages]
        [0.5, 0.6, 0.7]
    """

    def __init__(self, stages: Sequence[SingleStageRoIHeads], loss_weights: Sequence[float]) -> None:
        super().__init__()
        if not stages or len(stages) != len(loss_weights):
            raise ValueError(f"there must be a loss weight for each stage, got {len(loss_weights)} for {len(stages)}")
        if len({stage.has_mask() for stage in stages}) > 1:
            raise ValueError("either all stages have a mask head or none")
        self.stages: Any = nn.ModuleList(stages)
        self.loss_weights = tuple(loss_weights)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Levels and each image's proposals ``[n, 4]`` -> detections (in eval mode) and losses (in training)."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets | None
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (stage, weight) in enumerate(zip(self.stages, self.loss_weights, strict=True), 1):
            found = stage_losses(stage, features, some_proposals(proposals, image_shapes), image_shapes, targets)
            losses |= {f"{name}_{number}": weight * loss for name, loss in found.losses.items()}
            with torch.no_grad():
                proposals = refine(stage, found.logits, found.codes, found.regions, image_shapes, found.labels)
                proposals = [_without_empty(boxes) for boxes in proposals]
        return losses

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes
    ) -> list[dict[str, Tensor]]:
        proposals = some_proposals(proposals, image_shapes)
        last = self.stages[-1]
        probabilities = []
        for stage in self.stages:
            logits, regression = _predict(stage, features, proposals, image_shapes)
            probabilities.append(logits.softmax(1))
            if stage is not last:
                proposals = refine(stage, logits, regression, proposals, image_shapes)
        # the softmax that follows gives the mean probabilities back
        averaged = (reduce(torch.add, probabilities) / len(self.stages)).log()
        results = [
            {"boxes": boxes, "labels": labels, "scores": scores}
            for boxes, scores, labels in zip(
                *last.postprocess_detections(averaged, regression, proposals, image_shapes), strict=True
            )
        ]
        if last.has_mask():
            boxes = [result["boxes"] for result in results]
            labels = torch.cat([result["labels"] for result in results])
            pooled = last.mask_roi_pool(features, boxes, image_shapes)
            masks = sum(stage.mask_predictor(stage.mask_head(pooled)).sigmoid() for stage in self.stages)
            chosen = (masks / len(self.stages))[torch.arange(labels.shape[0], device=labels.device), labels][:, None]
            for result, own in zip(results, chosen.split([b.shape[0] for b in boxes]), strict=True):
                result["masks"] = own
        return results


class StageLosses(NamedTuple):
    """The losses of one stage, and what the next one starts from: regions, their labels and what was said of them."""

    losses: dict[str, Tensor]
    regions: list[Tensor]
    labels: Tensor
    logits: Tensor
    codes: Tensor


def stage_losses(
    stage: SingleStageRoIHeads,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    image_shapes: Sizes,
    targets: Targets | None,
) -> StageLosses:
    """Sample regions among proposals and true boxes, and compare what the heads say of them with the truth.

    Args:
        stage: the heads.
        features: levels of the pyramid.
        proposals: of every image, one or more.
        image_shapes: (H, W) of every image.
        targets: of every image.
    """
    regions, matched, labels, codes = stage.select_training_samples(proposals, targets)
    logits, regression = _predict(stage, features, regions, image_shapes)
    whole = torch.cat(labels)
    losses = {
        "loss_classifier": functional.cross_entropy(logits, whole),
        "loss_box_reg": _box_loss(
            codes_per_class(regression, logits.shape[1]), whole, torch.cat(codes), stage.box_loss
        ),
    }
    if stage.has_mask() and targets is not None:
        losses["loss_mask"] = _mask_loss(stage, features, regions, image_shapes, matched, labels, targets)
    return StageLosses(losses, regions, whole, logits, regression)


def _box_loss(codes: Tensor, labels: Tensor, truth: Tensor, box_loss: BoxLoss) -> Tensor:
    """Of the regions that hold an object, by the box of its class; divided by the number of all regions."""
    objects = torch.where(labels > 0)[0]
    of_class = codes.reshape(labels.shape[0], -1, 4)[objects, labels[objects]]
    loss = functional.smooth_l1_loss(of_class, truth[objects], beta=BETAS[box_loss], reduction="sum")
    return loss / labels.numel()


def some_proposals(proposals: list[Tensor], image_shapes: Sizes) -> list[Tensor]:
    """The proposals; where an image has none, the image as one.

    Example:
        >>> some_proposals([torch.zeros(0, 4)], [(3, 5)])
        [tensor([[0., 0., 5., 3.]])]
    """
    return [
        boxes if len(boxes) else boxes.new_tensor([[0.0, 0.0, float(width), float(height)]])
        for boxes, (height, width) in zip(proposals, image_shapes, strict=True)
    ]


def codes_per_class(codes: Tensor, classes: int) -> Tensor:
    """Box codes for each class: ``[N, 4]``, one for all, to ``[N, 4 classes]``; those of each class as they are."""
    return codes.repeat(1, classes) if codes.shape[1] == 4 < 4 * classes else codes


def refine(
    stage: RoIHeads,
    logits: Tensor,
    codes: Tensor,
    proposals: list[Tensor],
    image_shapes: Sizes,
    labels: Tensor | None = None,
) -> list[Tensor]:
    """The boxes that a stage makes of its proposals, clipped to the image.

    With a box for each class, that of the label, or of the likeliest object class where there is none.

    Args:
        stage: whose box coder decodes.
        logits: ``[N, K + 1]``.
        codes: ``[N, 4]`` or ``[N, 4 (K + 1)]``.
        proposals: of every image, N in all.
        image_shapes: (H, W) of every image.
        labels: ``[N]``, 0 for background; in training.

    Returns:
        Boxes of every image, as many as proposals.
    """
    if codes.shape[1] > 4:
        chosen = logits[:, 1:].argmax(1) + 1
        if labels is not None:
            chosen = torch.where(labels > 0, labels, chosen)
        codes = codes.view(codes.shape[0], -1, 4)[torch.arange(codes.shape[0], device=codes.device), chosen]
    counts = [boxes.shape[0] for boxes in proposals]
    refined = stage.box_coder.decode(codes, proposals)[:, 0].split(counts)
    return [clip_boxes_to_image(boxes, size) for boxes, size in zip(refined, image_shapes, strict=True)]


def _predict(
    stage: RoIHeads, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes
) -> tuple[Tensor, Tensor]:
    pooled = stage.box_roi_pool(features, proposals, image_shapes)
    logits, regression = stage.box_predictor(stage.box_head(pooled))
    return logits, regression


def _mask_loss(
    stage: RoIHeads,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    image_shapes: Sizes,
    matched: list[Tensor],
    labels: list[Tensor],
    targets: Targets,
) -> Tensor:
    """Of the regions that a true box matches."""
    objects = [torch.where(of_image > 0)[0] for of_image in labels]
    boxes = [of_image[chosen] for of_image, chosen in zip(proposals, objects, strict=True)]
    which = [of_image[chosen] for of_image, chosen in zip(matched, objects, strict=True)]
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, image_shapes)))
    return maskrcnn_loss(
        logits, boxes, [target["masks"] for target in targets], [target["labels"] for target in targets], which
    )


def _without_empty(boxes: Tensor) -> Tensor:
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
