"""The optimized network gives what the network gave, and what cannot fold exactly stays."""

import copy
import logging
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import nn

from convattn.layers import ACmix, LocalAttention2d, ShiftConv2d
from convattn.optimize import OptimizeReport, optimize
from convattn.optimize.report import largest_difference

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def trained(net, dtype=torch.float64):
    """Statistics and parameters away from where they start; in eval mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if getattr(module, "running_mean", None) is None:
                continue
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                module.weight.copy_(torch.rand_like(module.weight) + 0.5)
                module.bias.copy_(torch.randn_like(module.bias) * 0.2)
        for name, parameter in net.named_parameters():
            if name.endswith((".alpha", ".beta", ".kernel")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net.to(dtype).eval()


def optimized(net, *inputs, **options):
    """The optimized network and its report, once it was seen to be exact."""
    reports = []
    fast = optimize(net, inputs or None, report=reports.append, **options)
    (report,) = reports
    if inputs:
        assert report.relative_difference < 1e-12
    return fast, report


def batch_norms(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


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

    @pytest.mark.filterwarnings("ignore:the optimized network's outputs differ")
    @pytest.mark.parametrize("name", ["repvit_m0_9", "mobileone_s0"])
    def test_timm_modules_with_a_method_of_their_own(self, name):
        net = trained(timm.create_model(name, num_classes=5))
        reports = []
        fast = optimize(net, torch.randn(1, 3, 64, 64, dtype=torch.float64), report=reports.append)
        assert {p.dtype for p in fast.parameters()} == {torch.float64}
        assert reports[0].reparameterized
        assert reports[0].relative_difference < 1e-5  # timm folds in float32
        assert not batch_norms(fast)

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


def norm(channels=8, **options):
    return nn.BatchNorm2d(channels, **options)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, groups=4, stride=2),
        nn.ConvTranspose2d(8, 8, 3, stride=2),
        nn.ConvTranspose2d(8, 8, (2, 3), groups=2, bias=False),
        Conv2dSame(8, 8, 3, stride=2),
        ShiftConv2d(8, 8, 3, bias=False),
        LocalAttention2d(8, 8, kernel_size=3, stride=2),
        ACmix(8, 8, stride=2),
        ACmix(8, 8, num_heads=8, shift="tensor"),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("affine", [True, False])
def test_what_a_batch_norm_folds_into(convolution, affine):
    net = trained(nn.Sequential(copy.deepcopy(convolution), nn.Dropout(), norm(affine=affine), nn.ReLU()))
    fast, report = optimized(net, torch.randn(2, 8, 9, 7, dtype=torch.float64))
    assert report.batch_norms == {"2": "0"}
    assert report.activations == ({"3": "0"} if isinstance(convolution, ACmix) else {})
    assert not batch_norms(fast)


@pytest.mark.parametrize("first", [nn.Conv2d(8, 8, 1), ACmix(8, 8)], ids=["convolution", "ACmix"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_batch_norm_with_an_activation_inside(first, act):
    net = trained(nn.Sequential(copy.deepcopy(first), BatchNormAct2d(8, act_layer=act)))
    fast, report = optimized(net, torch.randn(2, 8, 9, 7, dtype=torch.float64))
    absorbed = isinstance(first, ACmix) and act is nn.ReLU
    assert report.activations == ({"1.act": "0"} if absorbed else {})
    assert type(fast[1]) is (nn.Identity if absorbed else act)


class Uses(nn.Module):
    """A convolution and a batch norm, used as the case says."""

    def __init__(self, use, first=None):
        super().__init__()
        self.conv, self.bn, self.relu, self.use = first or nn.Conv2d(4, 4, 1), norm(4), nn.ReLU(), use

    def forward(self, x):
        return self.use(self, x)


STAY = {
    "output used twice": lambda m, x: m.bn(y := m.conv(x)) + y,
    "output also returned": lambda m, x: (m.bn(y := m.conv(x)), y),
    "output changed between": lambda m, x: m.bn(m.conv(x).mul_(2)),
    "output detached elsewhere": lambda m, x: m.bn(y := m.conv(x)) + y.detach().mean(),
    "shared convolution": lambda m, x: m.bn(m.conv(x)) + m.conv(x + 1),
    "shared batch norm": lambda m, x: m.bn(m.conv(x)) + m.bn(x),
    "applied twice": lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))),
    "weight read too": lambda m, x: m.bn(m.conv(x)) + F.conv2d(x, m.conv.weight),
    "scale read too": lambda m, x: m.bn(m.conv(x)) * m.bn.weight.sum(),
    "relu before": lambda m, x: m.bn(m.relu(m.conv(x))),
    "two inputs": lambda m, x: m.bn(m.conv(x) + x),
}
FOLD = {
    "plain": lambda m, x: m.bn(m.conv(x)),
    "shape asked": lambda m, x: m.bn(y := m.conv(x)) * y.shape[1] + y.size(0),
    "output used twice after": lambda m, x: m.relu(y := m.bn(m.conv(x))) + y,
}


def by_data(use):
    """The same, in a network that cannot be traced."""
    return lambda m, x: use(m, x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("wrap", [lambda use: use, by_data], ids=["traced", "observed"])
@pytest.mark.parametrize("first", [nn.Conv2d(4, 4, 1), ACmix(4, 4)], ids=["convolution", "ACmix"])
class TestWays:
    @pytest.mark.parametrize("case", STAY)
    def test_stays(self, wrap, first, case):
        if case == "weight read too" and isinstance(first, ACmix):
            pytest.skip("it has no such weight")
        net = trained(Uses(wrap(STAY[case]), copy.deepcopy(first)))
        fast, report = optimized(net, torch.randn(1, 4, 5, 5, dtype=torch.float64))
        assert list(report.left) == batch_norms(fast) == ["bn"]
        assert report.activations == ({"relu": "conv"} if isinstance(first, ACmix) and case == "relu before" else {})

    @pytest.mark.parametrize("case", FOLD)
    def test_folds(self, wrap, first, case):
        net = trained(Uses(wrap(FOLD[case]), copy.deepcopy(first)))
        fast, report = optimized(net, torch.randn(1, 4, 5, 5, dtype=torch.float64))
        assert report.batch_norms == {"bn": "conv"}
        assert type(fast.relu) is nn.ReLU


class TestWhatStays:
    def stays(self, net, reason):
        fast, report = optimized(trained(net), torch.randn(2, 8, 6, 6, dtype=torch.float64))
        assert len(report.left) == len(batch_norms(fast)) == 1
        assert reason in next(iter(report.left.values()))
        assert reason in str(report)

    def test_no_running_statistics(self):
        self.stays(nn.Sequential(nn.Conv2d(8, 8, 1), norm(track_running_stats=False)), "no running statistics")

    def test_standardised_weight(self):
        self.stays(nn.Sequential(StdConv2d(8, 8, 1), norm()), "right before it")

    def test_parametrization(self):
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.stays(nn.Sequential(conv, norm()), "right before it")

    def test_hooks(self):
        net = nn.Sequential(nn.Conv2d(8, 8, 1), norm())
        net[1].register_forward_hook(lambda module, args, out: out + 1)
        self.stays(net, "it has hooks")

    def test_a_norm_of_the_input(self):
        self.stays(nn.Sequential(norm(), nn.Conv2d(8, 8, 1)), "right before it")

    def test_attention_over_zeros(self):
        from dataclasses import replace

        layer = LocalAttention2d(8, 8, kernel_size=3)
        layer.attention.neighborhood = replace(layer.attention.neighborhood, border="zeros")
        self.stays(nn.Sequential(layer, norm()), "not an average")


def test_tied_weights_keep_the_other_user():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), norm(4), nn.Conv2d(4, 4, 1))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    optimized(trained(net), torch.randn(1, 4, 5, 5, dtype=torch.float64))


def test_a_module_under_two_names():
    net = Uses(lambda m, x: m.bn(m.conv(x)))
    net.other = net.bn
    fast, _ = optimized(trained(net), torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert type(fast.other) is type(fast.bn) is nn.Identity


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


def test_timms_methods_are_called_and_other_things_of_those_names_are_not():
    class Fusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(x) * 2

        def fuse(self):
            self.conv.weight.mul_(2)
            self.conv.bias.mul_(2)
            return self.conv

    class Mixing(nn.Module):
        def forward(self, x):
            return self.fuse(x, x)

        def fuse(self, x, y):
            return x + y

    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.fuse(x)

    net = trained(nn.Sequential(Fusing(), norm(4), Mixing(), Holding()))
    fast, report = optimized(net, torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert report.reparameterized == ["0"]
    assert [type(m) for m in fast] == [nn.Conv2d, nn.Identity, Mixing, Holding]


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


class TestReport:
    def test_reads_as_sentences(self):
        net = trained(nn.Sequential(nn.Conv2d(3, 16, 1), norm(16), ACmix(16, 16), nn.ReLU(), norm(16)))
        _, report = optimized(net, torch.randn(1, 3, 5, 5, dtype=torch.float64))
        first, second, third, fourth = str(report).splitlines()
        assert first == "reparameterized 1 operators (1 grouped)"
        assert second == "folded 1 batch norms, took over 1 ReLUs"
        assert third.startswith("left 1 batch norms, 4 for one: no convolution or operator is right before it")
        assert fourth.startswith("largest output difference: ")

    def test_says_what_was_not_measured(self):
        assert "not measured, pass an example" in str(OptimizeReport())

    def test_is_logged(self, caplog):
        with caplog.at_level(logging.INFO, "convattn.optimize"):
            optimize(nn.Sequential(nn.Conv2d(3, 4, 1), norm(4)))
        assert "folded 1 batch norms" in caplog.text

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ([1.0, -2.0], [1.5, -2.0], (0.5, 0.25)),
            ([float("nan"), 2.0], [float("nan"), 2.0], (0.0, 0.0)),
            ([float("inf"), 2.0], [float("inf"), 1.0], (1.0, 0.5)),
            ([1.0, 2.0], [float("nan"), 2.0], (float("inf"), float("inf"))),
            ([1.0], [1.0, 1.0], (float("inf"), float("inf"))),
            ([], [], (0.0, 0.0)),
        ],
    )
    def test_largest_difference(self, before, after, expected):
        assert largest_difference([torch.tensor(before)], [torch.tensor(after)]) == expected

    def test_a_difference_beyond_rounding_is_told(self):
        class Drifting(nn.Module):
            def __init__(self):
                super().__init__()
                self.calls = 0

            def forward(self, x):
                self.calls += 1
                return x * self.calls

        with pytest.warns(UserWarning, match="differ by 2.0e\\+00 of the largest, rounding explains"):
            optimize(Drifting(), torch.ones(1))


def test_nothing_is_warned_of_by_default():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimize(timm.create_model("acmix_resnet14", channels=(8, 8, 16, 16)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: optimize(net, cost="guessed"), ValueError, r"cost must be one of \('counted', 'measured'\)"),
        (lambda net: optimize(net, cost="measured"), ValueError, "needs an example"),
        (lambda net: optimize(torch.compile(net)), TypeError, "optimize it first, then torch.compile"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Sequential(nn.Conv2d(3, 4, 1)))
