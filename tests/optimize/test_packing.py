"""Packed weights: the same outputs, only where they fit, and a refusal of everything else."""

import copy

import pytest
import timm
import torch
from torch import nn

from convattn import optimize
from convattn.optimize.packing import PackedConvolution, packs


def network():
    torch.manual_seed(0)
    return timm.create_model("xvolution_resnet14", num_classes=5, channels=(8, 16, 16, 32)).eval()


@pytest.fixture(scope="module")
def pair():
    """The network optimized, and the same with packed weights."""
    net, x, reports = network(), torch.randn(2, 3, 40, 32), []
    return optimize(net, x), optimize(net, x, weights="packed", report=reports.append), reports[0]


@pytest.mark.parametrize("size", [(2, 3, 40, 32), (1, 3, 40, 32), (3, 3, 33, 47), (0, 3, 32, 32)], ids=str)
def test_the_same_outputs_at_every_size(pair, size):
    plain, packed, _ = pair
    x = torch.randn(size)
    with torch.inference_mode():
        for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(packed(laid_out), plain(x), rtol=1e-5, atol=1e-6)


def test_every_plain_convolution_is_packed_and_named(pair):
    plain, packed, report = pair
    expected = [name for name, module in plain.named_modules() if type(module) is nn.Conv2d]
    assert report.packed == expected
    assert len(expected) > 8
    assert all(type(packed.get_submodule(name)) is PackedConvolution for name in expected)
    assert f"packed the weights of {len(expected)} convolutions" in str(report)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, (1, 3), stride=(2, 1), padding=(0, 1), bias=False),
        nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=3),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
    ],
    ids=lambda conv: conv.extra_repr(),
)
def test_any_geometry(conv):
    x = torch.randn(2, 6, 9, 7)
    with torch.inference_mode():
        torch.testing.assert_close(PackedConvolution(conv, x.shape)(x), conv(x), rtol=1e-5, atol=1e-6)


def test_what_computes_something_else_is_left():
    hooked = nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    others = [
        hooked,
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1).double(),
        nn.Conv2d(4, 4, 1).bfloat16(),
        type("Other", (nn.Conv2d,), {})(4, 4, 1),
    ]
    assert packs(nn.Conv2d(4, 4, 1))
    assert not any(map(packs, others))


def test_a_convolution_in_two_places_is_packed_once():
    conv = nn.Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 5, 5)
    fast = optimize(nn.Sequential(conv, nn.ReLU(), conv), x, weights="packed")
    assert type(fast[0]) is PackedConvolution
    assert fast[0] is fast[2]


def test_a_copy_computes_the_same(pair):
    packed, x = pair[1], torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_what_it_cannot_do_is_refused(tmp_path):
    conv = PackedConvolution(nn.Conv2d(4, 4, 1), (1, 4, 5, 5))
    x = torch.randn(1, 4, 5, 5)
    for wrong in (x.double(), x.bfloat16(), x[0], x.to("meta")):
        with pytest.raises(TypeError, match="packed weights take a float32 map"):
            conv(wrong)
    with pytest.raises(RuntimeError, match="inference alone"):
        conv(x.requires_grad_())
    with pytest.raises(RuntimeError, match="inference alone"):
        torch.func.vmap(conv)(x.detach()[None])
    with pytest.raises(Exception, match="inference alone"):
        torch.export.export(conv, (x.detach(),))
    with pytest.raises(TypeError, match="save the network before optimize"):
        torch.save(conv, tmp_path / "packed.pt")


def test_it_needs_an_example():
    with pytest.raises(ValueError, match="weights='packed' needs an example"):
        optimize(network(), weights="packed")
    with pytest.raises(ValueError, match="weights must be one of"):
        optimize(network(), torch.randn(1, 3, 32, 32), weights="blocked")
