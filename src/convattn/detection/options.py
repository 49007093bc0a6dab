"""What can be chosen about a detector; the fields are keyword arguments of the functions that make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from convattn.detection.backbone import BatchNorms, MapNorms
from convattn.detection.heads import BoxHead, BoxRegression, HeadNorm
from convattn.detection.proposals import BETAS, BoxLoss

Chosen = TypeVar("Chosen", bound="DetectorOptions")


@dataclass(frozen=True)
class DetectorOptions:
    """Of every detector.

    Args:
        backbone_args: more arguments of ``timm.create_model``: ``{"stride_place": "projection"}`` for a ResNet of this
            package that strides in the first 1x1, ``drop_path_rate``, ``out_indices``.
        pretrained: start from timm's pretrained weights, where it has some.
        frozen_stages: so many of the backbone's four stages are not trained, from the stem on.
        batch_norms: ``"frozen"``: the backbone's batch norms keep their statistics and weights, as small batches ask
            of a pretrained network; ``"eval"``: their statistics, while the weights are trained; ``"train"``.
        map_norms: ``"layer"``: a layer norm on each of the backbone's maps, as published for Swin; ``"none"``.
        channels: of the pyramid.
        min_size: the shorter side of the images; several: drawn for each image in training (multi-scale), the last
            one in prediction; None: images keep their size.
        max_size: the greatest length of the longer side.
        image_mean: of every channel, of images with values of 0 to 1; None: timm's for this backbone.
        image_std: likewise the deviation.
        anchor_scale: side of the anchors in strides of their level; None: 8 for an R-CNN (32 pixels at stride 4), 4
            for RetinaNet (32 at stride 8), as published; 4 and 2 suit images of about 128 pixels.
        anchor_ratios: height over width of the anchors.
        score_threshold: detections below are not given.
        nms_threshold: of two detections of a class with a greater IoU the weaker one goes.
        detections_per_image: the best so many are given.
    """

    backbone_args: Mapping[str, Any] | None = None
    pretrained: bool = False
    frozen_stages: int = 0
    batch_norms: BatchNorms = "train"
    map_norms: MapNorms = "none"
    channels: int = 256
    min_size: int | Sequence[int] | None = 800
    max_size: int = 1333
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    anchor_scale: float | None = None
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        for name in ("channels", "detections_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.anchor_scale is not None and self.anchor_scale <= 0:
            raise ValueError(f"anchor_scale must be above 0, got {self.anchor_scale}")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise ValueError(f"anchor_ratios must be above 0, got {self.anchor_ratios}")

    @classmethod
    def of(cls: type[Chosen], function: str, options: Mapping[str, Any]) -> Chosen:
        """From the keyword arguments of a function.

        Raises:
            TypeError: a name that is no option.

        Example:
            >>> DetectorOptions.of("retinanet", {"min_sise": 128})
            Traceback (most recent call last):
            ...
            TypeError: retinanet() has no option 'min_sise'; it has anchor_ratios, anchor_scale, backbone_args, ...
        """
        known = sorted(field.name for field in fields(cls))
        unknown = [name for name in options if name not in known]
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise TypeError(f"{function}() has no option {names}; it has {', '.join(known)}")
        return cls(**options)


@dataclass(frozen=True)
class RetinaNetOptions(DetectorOptions):
    """Of RetinaNet; and those of :class:`DetectorOptions`.

    Args:
        p6: from which map the levels above come: the backbone's last (``"C5"``, as published) or the pyramid's.
        head_norm: after the convolutions of the head: ``"none"``, as published, or ``"group"``, with which narrow
            heads learn faster from random weights.
    """

    p6: Literal["C5", "P5"] = "C5"
    head_norm: HeadNorm = "none"


@dataclass(frozen=True)
class RCNNOptions(DetectorOptions):
    """Of the R-CNNs; and those of :class:`DetectorOptions`.

    Args:
        box_head: ``"2fc"``: two linear layers; ``"4conv1fc"``: four 3x3 convolutions with batch norm, one linear.
        box_regression: ``"per_class"``: a box for every class; ``"agnostic"``: one. None: a cascade's are agnostic.
        box_loss: of the proposals' and the heads' box codes: ``"smooth_l1"``, torchvision's (quadratic below 1/9), or
            ``"l1"``, as in Detectron2.
        fc_channels: of the box head's linear layers.
        proposals: of an image in training and in prediction, before and after non-maximum suppression.
        regions_per_image: that are sampled in training for each stage, a quarter of them objects at most.
        anchors_per_image: that are sampled in training for the proposals, half of them objects at most; fewer suit
            small images, where the few that are objects would drown.
    """

    box_head: BoxHead = "2fc"
    box_regression: BoxRegression | None = None
    box_loss: BoxLoss = "smooth_l1"
    fc_channels: int = 1024
    proposals: tuple[int, int] = (2000, 1000)
    regions_per_image: int = 512
    anchors_per_image: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fc_channels", "regions_per_image", "anchors_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.box_loss not in BETAS:
            raise ValueError(f"box_loss must be one of {tuple(BETAS)}, got {self.box_loss!r}")
        if len(tuple(self.proposals)) != 2 or min(self.proposals) < 1:
            raise ValueError(f"proposals must be two numbers, of training and of prediction, got {self.proposals}")
