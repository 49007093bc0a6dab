"""The losses of the R-CNNs: torchvision's to the last bit, or with plain L1 of the boxes, as in Detectron2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from tests.detection.inputs import batch, detector

NAMES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask")


def losses_of(net: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)  # the samples of anchors and regions
    return net.train()(*batch())


def drawn(**options: str) -> nn.Module:
    torch.manual_seed(0)
    return detector("mask_rcnn", "conv_resnet14", **options)


def test_smooth_l1_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    net = drawn()
    ours = losses_of(net)
    monkeypatch.setattr(type(net.rpn), "compute_loss", RegionProposalNetwork.compute_loss)
    monkeypatch.setattr(type(net.roi_heads), "forward", RoIHeads.forward)
    theirs = losses_of(net)
    assert sorted(ours) == sorted(theirs) == sorted(NAMES)
    for name, loss in theirs.items():
        assert torch.equal(loss, ours[name]), name


def test_l1_has_no_quadratic_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both parts: torchvision's losses with smooth L1 exchanged for L1."""
    ours = losses_of(drawn(box_loss="l1"))
    net = drawn()
    monkeypatch.setattr(type(net.rpn), "compute_loss", RegionProposalNetwork.compute_loss)
    monkeypatch.setattr(type(net.roi_heads), "forward", RoIHeads.forward)
    plain = losses_of(net)

    def l1(found: Tensor, wanted: Tensor, beta: float, reduction: str) -> Tensor:
        return nn.functional.l1_loss(found, wanted, reduction=reduction)

    monkeypatch.setattr(nn.functional, "smooth_l1_loss", l1)
    theirs = losses_of(net)
    for name in NAMES:
        torch.testing.assert_close(ours[name], theirs[name])
    for name in ("loss_box_reg", "loss_rpn_box_reg"):
        assert ours[name] > plain[name]


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="box_loss must be one of"):
        detector("faster_rcnn", box_loss="giou")
