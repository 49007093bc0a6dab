"""The rows of the papers' tables on ADE20K: multiply-adds at 512x2048, parameters, 150 classes, on meta tensors."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import convattn.cost  # noqa: F401  teaches the counter this library's operators
from convattn.segmentation import semantic_fpn, upernet

# what torch's counter gave for the networks as published, in G and M
SEMANTIC_FPN = {
    "pvt_v1_tiny": (157.7, 16.98),
    "pvt_v1_small": (224.6, 28.24),
    "acmix_pvt_tiny": (159.5, None),
    "acmix_pvt_small": (227.9, None),
}
UPERNET = {"swin_tiny": (944.4, 59.94), "swin_small": (1037.4, 81.26)}


def counted(build, name, **options):
    with torch.device("meta"):
        model = build(timm.create_model(name, features_only=True, **options), num_classes=150).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert model(torch.empty(1, 3, 512, 2048)).shape == (1, 150, 512, 2048)
    return counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize("name", SEMANTIC_FPN)
def test_semantic_fpn(name):
    gmacs, parameters = SEMANTIC_FPN[name]
    found = counted(semantic_fpn, name)
    assert found[0] == pytest.approx(gmacs, rel=0.005)
    if parameters is not None:
        assert found[1] == pytest.approx(parameters, abs=0.005)


@pytest.mark.parametrize("name", UPERNET)
def test_upernet(name):
    """The tables' Swin, timm's too, projects the zeros that fill windows up; this library's does not and needs less."""
    gmacs, parameters = UPERNET[name]
    timms = counted(upernet, f"{name}_patch4_window7_224", strict_img_size=False)
    assert timms[0] == pytest.approx(gmacs, rel=0.0005)
    assert timms[1] == pytest.approx(parameters, abs=0.005)
    ours = counted(upernet, name)
    assert ours[0] < timms[0]
    assert ours[0] == pytest.approx(gmacs, rel=0.01)
    assert ours[1] == timms[1]


@pytest.mark.parametrize(("name", "published"), [("acmix_swin_tiny", (950, 60)), ("acmix_swin_small", (1043, 81))])
def test_upernet_on_acmix(name, published):
    """As the plain rows, without the projections of zeros; 5.0 G over Swin as published, 3.2 and 5.3 G here."""
    gmacs, parameters = counted(upernet, name)
    assert gmacs == pytest.approx(published[0], rel=0.01)
    assert parameters == pytest.approx(published[1], abs=1)
