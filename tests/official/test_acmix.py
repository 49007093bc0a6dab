"""Weights of the authors' code."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import convattn
from convattn import ACmix, load_official

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "acmix_operator.json").read_text())


def drawn(name, shape):
    """A weight drawn from its name, as the golden outputs were made."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    return torch.from_numpy(values / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else values * 0.2).float()


def theirs(channels_in, channels, heads=4, prefix=""):
    """A state dict of the authors' operator."""
    shapes = {f"conv{i}.weight": (channels, channels_in, 1, 1) for i in (1, 2, 3)}
    shapes |= {f"conv{i}.bias": (channels,) for i in (1, 2, 3)}
    shapes |= {"conv_p.weight": (channels // heads, 2, 1, 1), "conv_p.bias": (channels // heads,)}
    shapes |= {"fc.weight": (9, 3 * heads, 1, 1), "dep_conv.weight": (channels, 9, 3, 3), "rate1": (1,), "rate2": (1,)}
    return {prefix + name: drawn(prefix + name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_the_authors(name):
    case = CASES[name]
    layer = ACmix(
        case["in_channels"],
        case["out_channels"],
        kernel_size=case["conv_kernel"],
        attention_kernel_size=case["attn_kernel"],
        num_heads=case["heads"],
        stride=case["stride"],
    ).eval()
    report = load_official(layer, {key: drawn(key, shape) for key, shape in case["keys"].items()})
    assert report.missing == report.unexpected == []
    shape = (2, case["in_channels"], case["h"], case["w"])
    x = torch.from_numpy(np.random.default_rng(case["seed"]).standard_normal(shape).astype("float32"))
    expected = torch.from_numpy(np.load(GOLDEN / "acmix_operator.npz")[name])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def official_resnet(net):
    """The network's state dict under the authors' names."""
    state = {name: value for name, value in net.state_dict().items() if ".conv2." not in name}
    for name, module in net.named_modules():
        if isinstance(module, ACmix):
            state |= theirs(module.in_channels, module.out_channels, prefix=f"{name}.")
    return state


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_resnet_loads_whole(wrap):
    net = timm.create_model("acmix_resnet14", channels=(8, 16, 24, 32), num_classes=7)
    state = official_resnet(net)
    report = load_official(net, wrap(state))
    assert report.missing == report.unexpected == []
    assert set(report.ignored) == {f"layer{i}.0.conv2.conv_p.bias" for i in (1, 2, 3, 4)}
    assert torch.equal(net.layer3[0].conv2.projection.weight[24:48], state["layer3.0.conv2.conv2.weight"])
    assert torch.equal(net.layer1[0].conv2.mix.beta, state["layer1.0.conv2.rate2"])


def test_missing_and_unexpected_names_are_reported():
    state = theirs(8, 8)
    del state["rate1"]
    state["aux.weight"] = torch.zeros(1)
    report = load_official(ACmix(8, 8), state)
    assert report.missing == ["mix.alpha"]
    assert report.unexpected == ["aux.weight"]
    assert "missing: mix.alpha" in str(report)
    assert "ignored: conv_p.bias (it adds the same number to every logit of a softmax)" in str(report)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match=r"no name in the checkpoint fits the model: the checkpoint holds a\.b"):
        load_official(ACmix(8, 8), {"a.b": torch.zeros(1)})


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"convolution.fc is \[9, 12\] in the checkpoint and \[9, 24\] in the model"):
        load_official(ACmix(8, 8, num_heads=8), theirs(8, 8))


def test_the_model_is_untouched_when_refused():
    layer = ACmix(8, 8, num_heads=8)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="num_heads"):
        load_official(layer, theirs(8, 8))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_public_builders_have_the_names_of_the_registry():
    for name in convattn.models.list_models():
        assert callable(getattr(convattn.models, name))
