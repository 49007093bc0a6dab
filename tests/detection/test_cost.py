"""The multiply-adds of the papers' detectors: ACmix tables 2, 3 and 4 (RetinaNet, Mask and Cascade Mask R-CNN)."""

import pytest
import timm
import torch
from torch import nn

from convattn.cost import count
from convattn.detection import cascade_mask_rcnn, mask_rcnn, retinanet
from convattn.detection.heads import BOX_POOLED, MASK_POOLED
from convattn.models import pvt_blocks

SIZE = (3, 800, 1333)
BOX_REGIONS, MASK_REGIONS = 1000, 100


class Counted(nn.Module):
    """What of a detector the papers count: the backbone, the pyramid and the heads, these on so many regions."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.parts = detector.backbone, nn.ModuleDict()
        if hasattr(detector, "head"):
            self.parts["head"], self.stages = detector.head, []
            return
        self.parts["rpn"] = detector.rpn.head
        self.stages = nn.ModuleList(getattr(detector.roi_heads, "stages", [detector.roi_heads]))

    def forward(self, images):
        levels = list(self.backbone(images).values())
        for part in self.parts.values():
            part(levels)
        channels = self.backbone.out_channels
        for stage in self.stages:
            stage.box_predictor(stage.box_head(images.new_empty(BOX_REGIONS, channels, BOX_POOLED, BOX_POOLED)))
            masks = stage.mask_head(images.new_empty(MASK_REGIONS, channels, MASK_POOLED, MASK_POOLED))
            stage.mask_predictor(masks)


def giga(make, backbone, **options):
    with torch.device("meta"):
        detector = make(backbone, 80, **options)
    return count(Counted(detector), SIZE, convention="published").macs / 1e9


def crop_to_multiple(x, multiple):
    """What a convolution without padding leaves of a map."""
    return x[:, :, : x.shape[2] // multiple * multiple, : x.shape[3] // multiple * multiple]


def not_counted_of_strided_projections(name, arguments):
    """Of the 1x1 convolutions that stride, the multiply-adds between the resolution of the input and of the output."""
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True, **arguments)
        missing = []

        def note(conv, inputs, output):
            pixels = inputs[0].shape[2] * inputs[0].shape[3] - output.shape[2] * output.shape[3]
            missing.append(pixels * conv.in_channels * conv.out_channels)

        strided = [block.conv1 for stage in (net.layer2, net.layer3, net.layer4) for block in stage]
        strided = [conv for conv in strided if conv.stride == (2, 2)]
        for conv in strided:
            conv.register_forward_hook(note)
        net(torch.empty(1, *SIZE))
    return sum(missing) / 1e9


@pytest.mark.parametrize(
    ("backbone", "counted", "published"),
    [
        ("conv_resnet50", 249.5, 250),
        ("sasa_resnet50", 234.6, None),
        ("acmix_resnet50", 238.0, None),
        ("san19", 227.05, None),  # 229 published, 1 % more than any count of it
        ("acmix_san19", 231.0, None),  # 233 published
    ],
)
def test_retinanet(backbone, counted, published):
    found = giga(retinanet, backbone)
    assert found == pytest.approx(counted, rel=5e-3)
    if published:
        assert found == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize(
    ("backbone", "here", "counted", "published"),
    [("pvt_v1_tiny", 232.76, 230.03, 230), ("acmix_pvt_tiny", 234.30, 231.8, 232)],
)
def test_retinanet_on_pvt(backbone, here, counted, published, monkeypatch):
    """The authors' PVT leaves out what does not fill a patch (1333 to 333, 166, 83, 41); this one fills it up."""
    assert giga(retinanet, backbone) == pytest.approx(here, rel=1e-3)
    monkeypatch.setattr(pvt_blocks, "pad_to_multiple", crop_to_multiple)
    found = giga(retinanet, backbone)
    assert found == pytest.approx(counted, rel=5e-3)
    assert found == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize(
    ("backbone", "here", "counted", "published"),
    [("sasa_resnet50", 221.12, 226.05, 226), ("acmix_resnet50", 224.30, 229.2, 230)],
)
def test_retinanet_with_the_stride_in_the_first_1x1(backbone, here, counted, published):
    """The papers count what strides at the resolution of its input; so must the 1x1 be for their figures."""
    arguments = {"stride_place": "projection"}
    honest = giga(retinanet, backbone, backbone_args=arguments)
    assert honest == pytest.approx(here, rel=1e-3)
    found = honest + not_counted_of_strided_projections(backbone, arguments)
    assert found == pytest.approx(counted, rel=5e-3)
    assert found == pytest.approx(published, rel=5e-3)


def test_mask_rcnn_on_swin():
    swin, acmix = giga(mask_rcnn, "swin_tiny"), giga(mask_rcnn, "acmix_swin_tiny")
    assert swin == pytest.approx(274.3, rel=1e-2)
    assert acmix - swin == pytest.approx(3.30, rel=1e-2)
    assert (swin, acmix) == (pytest.approx(272, rel=1e-2), pytest.approx(275, rel=1e-2))


def test_cascade_mask_rcnn_on_swin():
    swin = giga(cascade_mask_rcnn, "swin_tiny", box_head="4conv1fc")
    acmix = giga(cascade_mask_rcnn, "acmix_swin_tiny", box_head="4conv1fc")
    assert swin == pytest.approx(751.5, rel=1e-2)
    assert (swin, acmix) == (pytest.approx(750, rel=1e-2), pytest.approx(754, rel=1e-2))
    small = giga(cascade_mask_rcnn, "swin_tiny")
    assert small == pytest.approx(408, rel=1e-2)
