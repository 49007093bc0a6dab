"""Packed weights: the same outputs, only where they fit, and a refusal of everything else."""

import copy

import pytest
import timm
import torch
from torch import nn

from convattn import ACmix, optimize
from convattn.layers.acmix_forms import GroupedACmix
from convattn.ops import _native
from convattn.optimize.packing import Packed, PackedACmix, PackedConvolution, packs


def network(name="xvolution_resnet14"):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, channels=(8, 64, 64, 64)).eval()


@pytest.fixture(scope="module", params=["xvolution_resnet14", "acmix_resnet14"])
def pair(request):
    """The network optimized, and the same with packed weights."""
    net, x, reports = network(request.param), torch.randn(2, 3, 40, 32), []
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
    folded = [name for name, module in plain.named_modules() if type(module) is GroupedACmix]
    whole = [name for name in folded if type(packed.get_submodule(name)) is PackedACmix]
    expected = [name for name, module in plain.named_modules() if type(module) is nn.Conv2d or name in whole]
    expected = [name for name in expected if name.removesuffix(".projection") not in {*folded} - {name}]
    assert report.packed == expected
    assert len(expected) > 8
    assert all(isinstance(packed.get_submodule(name), Packed) for name in expected)
    assert f"packed the weights of {len(expected)} convolutions" in str(report)
    assert len(whole) == (3 if folded and not _native.reasons() else 0)  # the fourth has too few channels a head


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("name", ["xvolution_resnet14", "acmix_resnet14"])
def test_bfloat16(name):
    x = torch.randn(2, 3, 40, 32)
    plain = optimize(network(name), x).bfloat16()
    packed = optimize(plain, x.bfloat16(), weights="packed")
    assert sum(isinstance(module, Packed) for module in packed.modules()) > 8
    for size in ((2, 3, 40, 32), (3, 3, 33, 47), (0, 3, 32, 32)):
        x = torch.randn(size).bfloat16()
        with torch.inference_mode():
            found, expected = packed(x), plain(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    with pytest.raises(TypeError, match="packed weights take a bfloat16 map"):
        packed(torch.randn(2, 3, 40, 32))


def test_an_acmix_that_is_not_one_call_keeps_its_parts():
    def layers():
        torch.manual_seed(0)
        kinds = {}, {"position": "table"}, {"dilation": 2}, {}
        return [ACmix(32, 32, num_heads=2, **kind) for kind in kinds]

    net, x = nn.Sequential(*layers()).eval(), torch.randn(1, 32, 9, 8)
    net[3].reparameterize("grouped")
    net[3].reparameterized.attention.register_forward_hook(lambda module, args, out: out * 2)
    plain, packed = optimize(net, x), optimize(net, x, weights="packed")
    kinds = [type(layer.reparameterized) for layer in packed]
    assert kinds[1:] == [GroupedACmix] * 3
    assert kinds[0] is (GroupedACmix if _native.reasons() else PackedACmix)
    with torch.inference_mode():
        for size in ((1, 32, 9, 8), (3, 32, 5, 5)):
            x = torch.randn(size).contiguous(memory_format=torch.channels_last)
            for before, after in zip(plain, packed, strict=True):
                torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")
def test_a_packed_acmix_owns_its_numbers_and_refuses_what_it_cannot_do():
    net, x = nn.Sequential(ACmix(32, 32, num_heads=2)).eval(), torch.randn(2, 32, 9, 8)
    plain = optimize(net, x)
    packed = optimize(plain, x, weights="packed")[0].reparameterized
    assert type(packed) is PackedACmix
    assert not packed.state_dict()
    with torch.inference_mode():
        before = plain(x)
    for parameter in plain.parameters():
        parameter.data.zero_()
    for layout in (torch.channels_last, torch.contiguous_format):
        found = packed(x.contiguous(memory_format=layout))
        torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-6)
        assert found.is_contiguous(memory_format=layout)
    with pytest.raises(ValueError, match=r"projection_weight must be \[96, 16, 1, 1\]"):
        packed(x[:, :16])
    with pytest.raises(RuntimeError, match="inference alone"):
        packed(x.clone().requires_grad_())
    with pytest.raises(TypeError, match="packed weights take a float32 map"):
        packed(x.bfloat16())


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
        nn.Conv2d(4, 4, 1).half(),
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
