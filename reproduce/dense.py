"""Detectors and segmenters, counted as tables 2 to 4 of ACmix count them: on the meta device, no memory, no boxes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

import convattn.models  # noqa: F401  registers the networks
from benchmarks.network import DETECTION_CLASSES
from convattn import detection, segmentation
from convattn.cost import count
from convattn.detection.heads import BOX_POOLED, MASK_POOLED

DETECTION_SIZE = (3, 800, 1333)
SEGMENTATION_SIZE, SEGMENTATION_CLASSES = (3, 512, 2048), 150
BOX_REGIONS, MASK_REGIONS = 1000, 100
"""How many regions the heads of a two-stage detector are counted on."""

SEGMENTERS = ("semantic_fpn", "upernet")
# Swin's Cascade Mask R-CNN has heads of four convolutions; those of two fully connected layers give 408 G.
_HEADS: dict[str, dict[str, Any]] = {"cascade_mask_rcnn": {"box_head": "4conv1fc"}}
# The figures of these two are those of blocks that stride in the first 1x1.
PROJECTION_STRIDES = ("sasa_resnet50", "acmix_resnet50")


class Counted(nn.Module):
    """What of a detector the papers count: the backbone, the pyramid and the heads, these on so many regions.

    Args:
        detector: of :mod:`convattn.detection`.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.parts = detector.backbone, nn.ModuleDict()
        self.stages = nn.ModuleList()
        if hasattr(detector, "head"):
            self.parts["head"] = detector.head
            return
        self.parts["rpn"] = detector.rpn.head
        self.stages.extend(getattr(detector.roi_heads, "stages", [detector.roi_heads]))

    def forward(self, images: Tensor) -> None:
        """``[B, 3, H, W]``; what comes out is not looked at."""
        levels = list(self.backbone(images).values())
        for part in self.parts.values():
            part(levels)
        channels = self.backbone.out_channels
        for stage in cast(Any, self.stages):
            stage.box_predictor(stage.box_head(images.new_empty(BOX_REGIONS, channels, BOX_POOLED, BOX_POOLED)))
            masks = stage.mask_head(images.new_empty(MASK_REGIONS, channels, MASK_POOLED, MASK_POOLED))
            stage.mask_predictor(masks)


@cache
def dense_cost(head: str, backbone: str) -> Mapping[str, float]:
    """Parameters in M and multiply-adds in G of a detector or segmenter, as the papers count.

    ``"honest"`` are the multiply-adds with every product at the resolution of its output, where that is less.

    Example:
        >>> round(dense_cost("semantic_fpn", "pvt_v1_tiny")["multiply-adds"], 1)
        157.7
    """
    return _segmenter(head, backbone) if head in SEGMENTERS else _detector(head, backbone)


def _segmenter(head: str, backbone: str) -> Mapping[str, float]:
    with torch.device("meta"):
        maps = timm.create_model(backbone, features_only=True)
        model = getattr(segmentation, head)(maps, num_classes=SEGMENTATION_CLASSES).eval()
    found = count(model, SEGMENTATION_SIZE)
    return {"parameters": found.parameters / 1e6, "multiply-adds": found.macs / 1e9}


def _detector(head: str, backbone: str) -> Mapping[str, float]:
    options = dict(_HEADS.get(head, {}))
    arguments = {"stride_place": "projection"} if backbone in PROJECTION_STRIDES else {}
    with torch.device("meta"):
        detector = getattr(detection, head)(backbone, DETECTION_CLASSES, backbone_args=arguments, **options)
    honest = count(Counted(detector), DETECTION_SIZE, convention="published").macs / 1e9
    parameters = sum(parameter.numel() for parameter in detector.parameters()) / 1e6
    if not arguments:
        return {"parameters": parameters, "multiply-adds": honest}
    published = honest + not_counted_of_strided_projections(backbone) / 1e9
    return {"parameters": parameters, "multiply-adds": published, "honest": honest}


def not_counted_of_strided_projections(backbone: str) -> int:
    """Of the 1x1 convolutions that stride, the multiply-adds between the resolution of the input and of the output."""
    missing = []

    def note(conv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pixels = inputs[0].shape[2] * inputs[0].shape[3] - output.shape[2] * output.shape[3]
        missing.append(pixels * conv.in_channels * conv.out_channels)

    with torch.device("meta"):
        net: Any = timm.create_model(backbone, features_only=True, stride_place="projection")
        blocks = [block for stage in (net.layer2, net.layer3, net.layer4) for block in stage]
        for block in blocks:
            if block.conv1.stride == (2, 2):
                block.conv1.register_forward_hook(note)
        net(torch.empty(1, *DETECTION_SIZE))
    return sum(missing)
