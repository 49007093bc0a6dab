"""RetinaNet, Faster, Mask and Cascade R-CNN on any backbone, over torchvision's detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from convattn.detection import heads
from convattn.detection.backbone import FeatureNet, PyramidBackbone, TopLevels
from convattn.detection.images import ImageBatcher, check_inputs
from convattn.detection.options import DetectorOptions, RCNNOptions, RetinaNetOptions
from convattn.detection.pooling import AlignedRoIAlign
from convattn.detection.proposals import ProposalNetwork
from convattn.detection.roi_heads import CascadeRoIHeads, SingleStageRoIHeads


@dataclass(frozen=True)
class Stage:
    """What one stage of an R-CNN asks of its boxes.

    Args:
        iou: with a true box, from which on a proposal is an object.
        box_weights: by which the codes of x, y, width and height are multiplied.
        loss_weight: of its losses.
    """

    iou: float = 0.5
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    loss_weight: float = 1.0


SINGLE = (Stage(),)
CASCADE = (
    Stage(),
    Stage(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    Stage(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)
OCTAVE_STEPS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


class RetinaNet(TorchvisionRetinaNet):
    """torchvision's RetinaNet with labels from 1 on, as the other detectors have them; see :func:`retinanet`.

    torchvision's counts the background among its classes and keeps a score for it, which nothing trains.
    """

    def __init__(self, backbone: PyramidBackbone, num_classes: int, options: RetinaNetOptions) -> None:
        scale = options.anchor_scale or 4
        sizes = tuple(tuple(scale * stride * step for step in OCTAVE_STEPS) for stride in backbone.strides)
        anchors = AnchorGenerator(sizes, (tuple(options.anchor_ratios),) * len(sizes))
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=anchors,
            head=heads.DenseHead(
                backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes, options.head_norm
            ),
            score_thresh=options.score_threshold,
            nms_thresh=options.nms_threshold,
            detections_per_img=options.detections_per_image,
        )
        self.num_classes = num_classes
        self.transform = _batcher(backbone, options)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As :class:`RCNN`'s; the losses are ``classification`` and ``bbox_regression``."""
        check_inputs(images, targets, num_classes=self.num_classes, training=self.training, masks=False)
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        results = super().forward(images, targets)
        if not self.training:
            for result in results:
                result["labels"] = result["labels"] + 1
        return results


class RCNN(GeneralizedRCNN):
    """torchvision's R-CNN that checks what it is given; see :func:`faster_rcnn` and the others.

    Args:
        backbone: what makes the levels.
        rpn: proposes boxes.
        roi_heads: of one stage or of several.
        transform: makes the batch.
        num_classes: K; labels are 1 to K.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        rpn: ProposalNetwork,
        roi_heads: SingleStageRoIHeads | CascadeRoIHeads,
        transform: ImageBatcher,
        *,
        num_classes: int,
    ) -> None:
        super().__init__(backbone, rpn, roi_heads, transform)
        self.num_classes = num_classes

    @property
    def has_masks(self) -> bool:
        """Whether it gives a mask for each object, and needs them in training."""
        stages = self.roi_heads.stages if isinstance(self.roi_heads, CascadeRoIHeads) else [self.roi_heads]
        return bool(stages[-1].has_mask())

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training, detections in eval mode.

        Args:
            images: each ``[C, H, W]``, values of 0 to 1, of any size.
            targets: for each image ``boxes`` ``[n, 4]`` (x1, y1, x2, y2), ``labels`` ``[n]`` of 1 to K and, for masks,
                ``masks`` ``[n, H, W]``; n may be 0.

        Returns:
            A dictionary of losses, or for each image ``boxes`` ``[d, 4]``, ``labels`` and ``scores`` ``[d]`` and, of
            the detectors with masks, ``masks`` ``[d, 1, H, W]`` of probabilities.

        Raises:
            ValueError: images or targets of another form; see :func:`convattn.detection.images.check_inputs`.
        """
        check_inputs(
            images,
            targets,
            num_classes=self.num_classes,
            training=self.training,
            masks=self.training and self.has_masks,
        )
        return super().forward(images, targets)


def retinanet(backbone: str | nn.Module, num_classes: int = 80, **options: Any) -> RetinaNet:
    """RetinaNet (Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017).

    Args:
        backbone: a name of timm's registry, or a network that publishes ``feature_info``.
        num_classes: of objects; labels are 1 to ``num_classes`` (80: COCO).
        **options: of :class:`convattn.detection.RetinaNetOptions`.

    Raises:
        ValueError: a backbone that does not fit a pyramid, an option out of range.
        TypeError: an unknown option.

    Example:
        >>> import torch
        >>> from convattn.detection import retinanet
        >>> small = {"channels": (8, 16, 24, 32)}
        >>> net = retinanet("acmix_resnet14", 3, backbone_args=small, channels=16, min_size=None)
        >>> boxes, labels = torch.tensor([[3.0, 4.0, 20.0, 30.0]]), torch.tensor([2])
        >>> sorted(net([torch.rand(3, 33, 47)], [{"boxes": boxes, "labels": labels}]))
        ['bbox_regression', 'classification']
    """
    chosen = RetinaNetOptions.of("retinanet", options)
    _check_classes(num_classes)
    return RetinaNet(_pyramid(backbone, chosen, levels=3, top=chosen.p6), num_classes, chosen)


def faster_rcnn(backbone: str | nn.Module, num_classes: int = 80, **options: Any) -> RCNN:
    """Faster R-CNN with a feature pyramid (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017).

    Args:
        backbone: a name of timm's registry, or a network that publishes ``feature_info``.
        num_classes: of objects; labels are 1 to ``num_classes``.
        **options: of :class:`convattn.detection.RCNNOptions`.

    Raises:
        ValueError: a backbone that does not fit a pyramid, an option out of range.
        TypeError: an unknown option.

    Example:
        >>> import torch
        >>> from convattn.detection import faster_rcnn
        >>> small = {"channels": (8, 16, 24, 32)}
        >>> net = faster_rcnn("acmix_resnet14", 3, backbone_args=small, channels=16, fc_channels=16, min_size=None)
        >>> sorted(net.eval()([torch.rand(3, 33, 47)])[0])
        ['boxes', 'labels', 'scores']
    """
    return _rcnn(backbone, num_classes, RCNNOptions.of("faster_rcnn", options))


def mask_rcnn(backbone: str | nn.Module, num_classes: int = 80, **options: Any) -> RCNN:
    """Mask R-CNN (He et al., ICCV 2017): :func:`faster_rcnn` and a mask for each object.

    Arguments and errors are those of :func:`faster_rcnn`.

    Example:
        >>> from convattn.detection import mask_rcnn
        >>> mask_rcnn("acmix_resnet14", 3, channels=16, fc_channels=16).has_masks
        True
    """
    return _rcnn(backbone, num_classes, RCNNOptions.of("mask_rcnn", options), output="masks")


def cascade_rcnn(backbone: str | nn.Module, num_classes: int = 80, **options: Any) -> RCNN:
    """Cascade R-CNN (Cai and Vasconcelos, TPAMI 2019): three stages that ask for an IoU of 0.5, 0.6 and 0.7.

    Arguments and errors are those of :func:`faster_rcnn`; boxes are class-agnostic unless told.

    Example:
        >>> from convattn.detection import cascade_rcnn
        >>> net = cascade_rcnn("acmix_resnet14", 3, channels=16, fc_channels=16, box_head="4conv1fc")
        >>> len(net.roi_heads.stages)
        3
    """
    return _rcnn(backbone, num_classes, RCNNOptions.of("cascade_rcnn", options), stages=CASCADE)


def cascade_mask_rcnn(backbone: str | nn.Module, num_classes: int = 80, **options: Any) -> RCNN:
    """Cascade Mask R-CNN: :func:`cascade_rcnn` with a mask head in every stage.

    Arguments and errors are those of :func:`cascade_rcnn`.

    Example:
        >>> from convattn.detection import cascade_mask_rcnn
        >>> cascade_mask_rcnn("acmix_resnet14", 3, channels=16, fc_channels=16).has_masks
        True
    """
    return _rcnn(backbone, num_classes, RCNNOptions.of("cascade_mask_rcnn", options), stages=CASCADE, output="masks")


def _rcnn(
    backbone: str | nn.Module,
    num_classes: int,
    options: RCNNOptions,
    *,
    stages: tuple[Stage, ...] = SINGLE,
    output: Literal["boxes", "masks"] = "boxes",
) -> RCNN:
    _check_classes(num_classes)
    pyramid = _pyramid(backbone, options, levels=4, top="pool")
    made = [_roi_heads(pyramid, num_classes, options, stage, agnostic=len(stages) > 1) for stage in stages]
    if output == "masks":
        for heads_of_stage in made:
            _add_masks(heads_of_stage, pyramid, num_classes)
    roi_heads = CascadeRoIHeads(made, [stage.loss_weight for stage in stages]) if len(made) > 1 else made[0]
    return RCNN(pyramid, _rpn(pyramid, options), roi_heads, _batcher(pyramid, options), num_classes=num_classes)


def _rpn(pyramid: PyramidBackbone, options: RCNNOptions) -> ProposalNetwork:
    scale = options.anchor_scale or 8
    ratios = (tuple(options.anchor_ratios),) * len(pyramid.strides)
    anchors = AnchorGenerator(tuple((scale * stride,) for stride in pyramid.strides), ratios)
    count = dict(zip(("training", "testing"), options.proposals, strict=True))
    return ProposalNetwork(
        anchors,
        heads.ProposalHead(pyramid.out_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=options.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=count,
        post_nms_top_n=count,
        nms_thresh=0.7,
        box_loss=options.box_loss,
    )


def _roi_heads(
    pyramid: PyramidBackbone, num_classes: int, options: RCNNOptions, stage: Stage, *, agnostic: bool
) -> SingleStageRoIHeads:
    regression = options.box_regression or ("agnostic" if agnostic else "per_class")
    return SingleStageRoIHeads(
        AlignedRoIAlign(pyramid.names, pyramid.features.strides, heads.BOX_POOLED),
        heads.make_box_head(options.box_head, pyramid.out_channels, options.fc_channels),
        heads.BoxPredictor(options.fc_channels, num_classes, regression),
        fg_iou_thresh=stage.iou,
        bg_iou_thresh=stage.iou,
        batch_size_per_image=options.regions_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=stage.box_weights,
        score_thresh=options.score_threshold,
        nms_thresh=options.nms_threshold,
        detections_per_img=options.detections_per_image,
        box_loss=options.box_loss,
    )


def _add_masks(roi_heads: SingleStageRoIHeads, pyramid: PyramidBackbone, num_classes: int) -> None:
    roi_heads.mask_roi_pool = AlignedRoIAlign(pyramid.names, pyramid.features.strides, heads.MASK_POOLED)
    roi_heads.mask_head = heads.make_mask_head(pyramid.out_channels)
    roi_heads.mask_predictor = heads.MaskPredictor(pyramid.out_channels, num_classes)


def _pyramid(backbone: str | nn.Module, options: DetectorOptions, *, levels: int, top: TopLevels) -> PyramidBackbone:
    features = FeatureNet(
        backbone,
        backbone_args=options.backbone_args,
        pretrained=options.pretrained,
        levels=levels,
        frozen_stages=options.frozen_stages,
        batch_norms=options.batch_norms,
        map_norms=options.map_norms,
    )
    return PyramidBackbone(features, options.channels, top=top)


def _batcher(pyramid: PyramidBackbone, options: DetectorOptions) -> ImageBatcher:
    features = pyramid.features
    mean, std = options.image_mean or features.image_mean, options.image_std or features.image_std
    return ImageBatcher(options.min_size, options.max_size, mean, std, stride=features.strides[-1])


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, the background not counted, got {num_classes}")
