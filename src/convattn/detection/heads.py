"""Heads on the levels of a pyramid and on pooled regions."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead

from convattn.detection.backbone import as_float
from convattn.layers._checks import check_choice
from convattn.layers.normalisation import group_norm

BoxHead: TypeAlias = Literal["2fc", "4conv1fc"]
BoxRegression: TypeAlias = Literal["per_class", "agnostic"]
HeadNorm: TypeAlias = Literal["none", "group"]

BOX_POOLED, MASK_POOLED = 7, 14


class InFloat32(nn.Module):
    """A head whose outputs are in float32 under autocast."""

    def forward(self, x: Any) -> Any:
        """As the head's own."""
        return tree_map(as_float, super().forward(x))


class ProposalHead(InFloat32, RPNHead):
    """torchvision's RPN head, whose outputs are in float32 under autocast.

    Levels -> objectness ``[B, A, h, w]`` and box codes ``[B, 4 A, h, w]`` of each.
    """


class DenseHead(InFloat32, RetinaNetHead):
    """torchvision's RetinaNet head, whose outputs are in float32 under autocast.

    Levels -> logits ``[B, anchors, classes]`` and box codes ``[B, anchors, 4]``.

    Args:
        in_channels: C.
        num_anchors: of a place.
        num_classes: K, the background not among them.
        norm: after each of the four convolutions: ``"none"``, as published, or ``"group"``, group normalisation, with
            which a narrow head learns faster from random weights: its convolutions, drawn small, would otherwise
            shrink what they are given a thousandfold.

    Raises:
        ValueError: an unknown norm.

    Example:
        >>> import torch
        >>> found = DenseHead(8, 2, 3, norm="group")([torch.zeros(1, 8, 4, 4)])
        >>> list(found["cls_logits"].shape), list(found["bbox_regression"].shape)
        ([1, 32, 3], [1, 32, 4])
    """

    def __init__(self, in_channels: int, num_anchors: int, num_classes: int, norm: HeadNorm = "none") -> None:
        check_choice("head_norm", norm, HeadNorm)
        super().__init__(in_channels, num_anchors, num_classes, norm_layer=None if norm == "none" else group_norm)


class BoxPredictor(nn.Module):
    """Class logits and box codes from the features of a region.

    Args:
        in_channels: F.
        num_classes: K, the background not among them.
        regression: ``"per_class"``: a box for every class; ``"agnostic"``: one.

    Raises:
        ValueError: an unknown regression.

    Example:
        >>> import torch
        >>> logits, codes = BoxPredictor(8, 3, "agnostic")(torch.zeros(5, 8))
        >>> list(logits.shape), list(codes.shape)
        ([5, 4], [5, 4])
    """

    def __init__(self, in_channels: int, num_classes: int, regression: BoxRegression = "per_class") -> None:
        super().__init__()
        check_choice("box_regression", regression, BoxRegression)
        self.regression = regression
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * (1 if regression == "agnostic" else num_classes + 1))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, F]`` -> logits ``[N, K + 1]``, background first, and box codes ``[N, 4]`` or ``[N, 4 (K + 1)]``."""
        return as_float(self.cls_score(x)), as_float(self.bbox_pred(x))


class MaskPredictor(InFloat32, MaskRCNNPredictor):
    """torchvision's mask predictor, whose outputs are in float32 under autocast; class 0 is the background's.

    ``[N, C, 14, 14]`` -> logits ``[N, K + 1, 28, 28]``.

    Args:
        in_channels: C.
        num_classes: K, the background not among them.

    Example:
        >>> import torch
        >>> list(MaskPredictor(8, 3)(torch.zeros(5, 8, 14, 14)).shape)
        [5, 4, 28, 28]
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, in_channels, num_classes + 1)


def make_box_head(kind: BoxHead, channels: int, fc_channels: int) -> nn.Module:
    """``[N, channels, 7, 7]`` -> ``[N, fc_channels]``.

    Args:
        kind: ``"2fc"``: two linear layers; ``"4conv1fc"``: four 3x3 convolutions with batch norm and a linear layer.
        channels: of the pyramid.
        fc_channels: of the linear layers.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> import torch
        >>> list(make_box_head("4conv1fc", 8, 16)(torch.zeros(2, 8, 7, 7)).shape)
        [2, 16]
    """
    check_choice("box_head", kind, BoxHead)
    if kind == "2fc":
        return TwoMLPHead(channels * BOX_POOLED**2, fc_channels)
    size = (channels, BOX_POOLED, BOX_POOLED)
    return FastRCNNConvFCHead(size, [channels] * 4, [fc_channels], norm_layer=nn.BatchNorm2d)


def make_mask_head(channels: int) -> nn.Module:
    """``[N, channels, 14, 14]`` -> the same shape: four 3x3 convolutions."""
    return MaskRCNNHeads(channels, [channels] * 4, 1)
