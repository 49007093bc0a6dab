"""The optimized network gives what the network gave."""

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from convattn.layers import ACmix
from convattn.optimize import optimize
from tests.optimize.networks import EXACT, batch_norms, norm, optimized, trained


class TestNetworks:
    @pytest.mark.parametrize("name", ["conv_resnet26", "acmix_resnet26", "sasa_resnet14"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
    def test_ours(self, name, dtype, tolerance):
        net = trained(timm.create_model(name, num_classes=7, channels=(16, 24, 32, 40)), dtype)
        reports = []
        fast = optimize(net, report=reports.append)
        x = torch.randn(2, 3, 65, 48, dtype=dtype)
        difference = (fast(x) - net(x)).abs().max() / net(x).abs().max()
        assert difference < tolerance
        assert not batch_norms(fast)
        assert not reports[0].left
        blocks = 8 if name == "acmix_resnet26" else 0
        assert len(reports[0].operators) == len(reports[0].activations) == blocks

    def test_modules_keep_their_classes_and_the_network_its_own(self):
        net = trained(timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16))).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        fast = optimize(net)
        assert net.training
        assert not fast.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert type(fast) is type(net)
        assert type(fast.layer1[0]) is type(net.layer1[0])
        block = fast.layer2[0]
        assert (type(block.bn2), type(block.act2), type(block.act1)) == (nn.Identity, nn.Identity, nn.ReLU)
        assert "absorbed batch norm and relu" in repr(block.conv2)
        assert fast.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert not any(p.requires_grad for p in fast.parameters())

    def test_features_only(self):
        net = trained(timm.create_model("acmix_resnet14", features_only=True, channels=(8, 8, 16, 16)))
        fast, report = optimized(net, torch.randn(1, 3, 40, 40, dtype=torch.float64))
        assert not report.left
        assert not batch_norms(fast)

    @pytest.mark.parametrize(
        ("name", "left"),
        [("resnet18", 0), ("resnet26d", 0), ("efficientnet_b0", 0), ("densenet121", 62)],
    )
    def test_timm(self, name, left):
        net = trained(timm.create_model(name, num_classes=5))
        fast, report = optimized(net, torch.randn(1, 3, 64, 64, dtype=torch.float64))
        assert len(report.left) == len(batch_norms(fast)) == left

    @pytest.mark.parametrize("operator", [False, True])
    def test_torchvision(self, operator):
        net = torchvision.models.resnet50(num_classes=5)
        if operator:
            net.layer1[1].conv2 = ACmix(64, 64)
        fast, report = optimized(trained(net), torch.randn(1, 3, 64, 64, dtype=torch.float64))
        assert not batch_norms(fast)
        # torchvision's blocks call one ReLU three times: it has to stay
        assert not report.activations
        assert type(fast.layer1[1].relu) is nn.ReLU

    def test_detector_needs_an_example(self):
        build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
        net = trained(build(weights=None, weights_backbone=None, min_size=64, max_size=96))
        with pytest.warns(UserWarning, match=r"46 batch norms stay.*cannot be traced.*Pass an example"):
            _, report = optimized(net)
        assert len(report.left) == 46
        fast, report = optimized(net, [torch.rand(3, 64, 80, dtype=torch.float64)])
        assert (len(report.batch_norms), report.left) == (46, {})
        x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
        for got, expected in zip(fast.backbone(x).values(), net.backbone(x).values(), strict=True):
            torch.testing.assert_close(got, expected, **EXACT)


def test_several_inputs_and_options():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), norm(4)

        def forward(self, x, y, scale=None, twice=False):
            out = self.bn(self.conv(x * y))
            out = out if scale is None else out * scale
            return out * 2 if twice else out

    net = trained(Net())
    x, y = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)
    for inputs in ((), (x, y), (x, y, None, True), (x, y, y)):
        fast, report = optimized(net, *inputs)
        assert report.batch_norms == {"bn": "conv"}
        torch.testing.assert_close(fast(x, y, y), net(x, y, y), **EXACT)


def test_a_second_time_changes_nothing():
    net = trained(timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16)))
    fast = optimize(net)
    again, report = optimized(fast, torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert not report.batch_norms
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), again.parameters(), strict=True))


def test_state_dict_loads_into_an_optimized_network():
    def build():
        return timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16)).double()

    fast = optimize(trained(build()))
    loaded = optimize(build())
    loaded.load_state_dict(fast.state_dict())
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), fast(x), **EXACT)


def test_measured_cost():
    net = trained(nn.Sequential(ACmix(3, 8), nn.ReLU(), ACmix(8, 8, stride=2)))
    _, report = optimized(net, torch.randn(1, 3, 6, 6, dtype=torch.float64), cost="measured")
    assert set(report.operators) == {"0", "2"}


def test_a_bare_operator_and_a_root_convolution():
    _, report = optimized(trained(ACmix(8, 8)), torch.randn(1, 8, 5, 5, dtype=torch.float64))
    assert report.operators == {"": "grouped"}
    optimized(nn.Conv2d(3, 4, 1).double(), torch.randn(1, 3, 5, 5, dtype=torch.float64))


def test_inputs_are_left_alone_and_three_dimensional_convolutions_stay():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv3d(2, 2, 1)).double()
    x = torch.randn(1, 2, 3, 3, 3, dtype=torch.float64)
    kept = x.clone()
    optimized(net, x)
    assert torch.equal(x, kept)


def test_meta_has_no_difference_to_measure():
    net = timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16)).to("meta")
    fast, report = optimized(net)
    optimize(net, torch.empty(1, 3, 32, 32, device="meta"))
    assert report.max_difference is None
    assert not batch_norms(fast)
    assert fast(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_compile_and_export():
    net = trained(timm.create_model("acmix_resnet14", num_classes=5, channels=(8, 8, 16, 16)))
    fast = optimize(net)
    x = torch.randn(2, 3, 48, 40, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(fast, backend="aot_eager", fullgraph=True)(x), net(x), **EXACT)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(fast, (x,), dynamic_shapes=(free,)).module()
    other = torch.randn(3, 3, 65, 64, dtype=torch.float64)
    torch.testing.assert_close(program(other), net(other), **EXACT)


def test_nothing_is_warned_of_by_default():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimize(timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: optimize(net, cost="guessed"), ValueError, r"cost must be one of \('counted', 'measured'\)"),
        (lambda net: optimize(net, cost="measured"), ValueError, "needs an example"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Sequential(nn.Conv2d(3, 4, 1)))
