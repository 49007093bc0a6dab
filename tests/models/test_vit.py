"""DeiT here is timm's for any size, and ACmix is in the place of its attention."""

import pytest
import timm
import torch
from timm.utils import reparameterize_model

from convattn.cost import count
from convattn.models.vit import _from_vit
from tests.cost.counted import COUNTED
from tests.drawing import moved

TINY = {"embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5}
NAMES = ["deit_tiny", "acmix_deit_tiny"]

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("kind", ["", "acmix_"])
def test_what_acmix_adds(kind, size):
    name = f"{kind}deit_{size}"
    with torch.device("meta"):
        net = timm.create_model(name)
    cost = count(net)
    assert cost.parameters / 1e6 == pytest.approx(COUNTED[name][0], abs=6e-4)
    blocks, channels, heads = 12, net.num_features, net.num_features // 64
    convolution = (9 * 3 * channels + 81 * channels) * 14 * 14  # fc and the grouped convolution, at every patch
    assert cost.macs_by_path["fc"] + cost.macs_by_path["group convolution"] == (
        blocks * convolution if name.startswith("acmix") else 0
    )
    if name.startswith("acmix"):
        with torch.device("meta"):
            plain = count(timm.create_model(name.removeprefix("acmix_")))
        assert cost.parameters - plain.parameters == blocks * (27 * heads + 81 * channels + 2)


@pytest.mark.parametrize("name", NAMES)
def test_timms_weights_give_timms_outputs(name):
    """With ACmix too, which starts with its convolution path at a rate of 0."""
    options = {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    theirs = moved(timm.create_model("deit_tiny_patch16_224", **options), 0.2).eval().double()
    ours = timm.create_model(name, **options).double().eval()
    ours.load_state_dict(_from_vit(theirs.state_dict(), ours))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_any_size_also_reparameterized(name, stem):
    net = moved(timm.create_model(name, stem=stem, in_chans=1, drop_path_rate=0.1, **TINY), 0.2).eval().double()
    folded = reparameterize_model(net)
    assert not any("mix" in key for key in folded.state_dict())
    for size in [(1, 1), (32, 32), (37, 65)]:
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        out = net(x)
        assert out.shape == (1, 5)
        torch.testing.assert_close(folded(x), out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_features(name):
    net = timm.create_model(name, features_only=True, **TINY)
    assert (net.feature_info.channels(), net.feature_info.reduction()) == ([16], [16])
    assert [map_.shape for map_ in net(torch.randn(1, 3, 70, 33))] == [(1, 16, 5, 3)]


def test_decay_classifier_and_misuse():
    net = timm.create_model("acmix_deit_tiny", **TINY)
    spared = net.no_weight_decay()
    assert {"stages.0.pos_embed", "stages.0.cls_token", "stages.0.blocks.1.attn.mix.beta"} <= spared
    net.reset_classifier(7)
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match="stem must be 'imagenet' or 'small', got 'tiny'"):
        timm.create_model("deit_tiny", stem="tiny")
    with pytest.raises(ValueError, match="must be divisible by num_heads"):
        timm.create_model("deit_tiny", embed_dim=16, num_heads=3)
