"""What folds into what, and that what cannot fold exactly stays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import nn

from convattn.layers import ACmix, LocalAttention2d, ShiftConv2d
from tests.optimize.networks import batch_norms, norm, optimized, trained


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
