"""The static branches of X-volution in every inference form, and the choice among the forms."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn.cost  # noqa: F401  (tells a FLOP counter what the operators cost)
from convattn import MultiConvolution, XVolution
from convattn.layers import folding
from convattn.layers.static_convolution import map_multiply_adds, merged_taps, static_multiply_adds
from convattn.ops import backends
from convattn.optimize import optimize
from tests.layers.folding_cases import EXACT, SIZES, folded_copy, trained

FORMS = ("separate", "dense", "gathered")

pytestmark = pytest.mark.usefixtures("seeded")


def on_map(ones, branch):
    """How many of a convolution's taps lie on the map, for every output."""
    conv = branch.convolution
    taps = torch.ones(1, 1, *conv.kernel_size)
    return F.conv2d(ones, taps, None, conv.stride, conv.padding, conv.dilation)


class TestTheStaticKernel:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, (1, 3), (7, 1)])
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((1, 2), (3, 2))])
    def test_every_form(self, form, kernel, stride, dilation):
        layer = trained(MultiConvolution, 3, 4, kernel, stride=stride, dilation=dilation)
        folded = folded_copy(layer, form)
        assert folded.reparameterized.form == form
        for size in SIZES:
            x = torch.randn(2, 3, *size, dtype=torch.float64)
            torch.testing.assert_close(folded(x), layer(x), **EXACT)

    def test_it_has_33_of_81_taps(self):
        """K[3:6, 3:6] += g3 W3, K[::2, ::2] += g5 W5."""
        layer = trained(MultiConvolution, 3, 4)
        branches = layer.static_branches()
        gains = [branch.gain[:, None, None, None] for branch in branches]
        expected = torch.zeros(4, 3, 9, 9, dtype=torch.float64)
        expected[:, :, 3:6, 3:6] += gains[0] * layer.convolution.weight
        expected[:, :, ::2, ::2] += gains[1] * layer.dilated.weight
        (dense,) = folded_copy(layer, "dense").reparameterized.static.convolutions
        torch.testing.assert_close(dense.weight, expected, **EXACT)
        assert dense.weight.ne(0).any(0).any(0).sum() == 33
        assert len(merged_taps(branches)[0]) == 33

    @pytest.mark.parametrize(
        ("kernel", "counted", "form"),
        [
            (1, (26, 25, 25), "dense"),
            (3, (34, 81, 33), "separate"),
            (5, (50, 81, 41), "separate"),
            (7, (74, 81, 65), "separate"),
            (9, (106, 81, 81), "dense"),
            ((1, 3), (28, 45, 27), "separate"),
        ],
        ids=str,
    )
    def test_the_cheapest_form_is_chosen(self, kernel, counted, form):
        layer = MultiConvolution(2, 4, kernel)
        assert static_multiply_adds(layer.static_branches()) == dict(zip(FORMS, (8 * c for c in counted), strict=True))
        layer.reparameterize()
        assert layer.reparameterized.form == form
        assert f"form='{form}', taps=" in repr(layer)
        assert f"multiply_adds={8 * counted[FORMS.index(form)]} for an output pixel" in repr(layer)

    def test_many_channels_pay_for_copies(self):
        layer = MultiConvolution(8, 512, 5, device="meta")
        layer.reparameterize()
        assert layer.reparameterized.form == "gathered"

    @pytest.mark.parametrize("form", FORMS)
    def test_counts_are_those_of_a_counter(self, form):
        layer = MultiConvolution(4, 6, stride=2)
        counted = static_multiply_adds(layer.static_branches())[form]
        layer.reparameterize(form)
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, 4, 6, 8))
        assert counter.get_total_flops() == 2 * counted * 12

    @pytest.mark.parametrize(
        ("size", "share"), [((1, 1), 1 / 33), ((7, 7), 841 / 33 / 49), ((2, 9), None), ((200, 200), None)], ids=str
    )
    @pytest.mark.parametrize("stride", [1, 2])
    def test_only_products_on_the_map_count_where_zeros_are_skipped(self, monkeypatch, size, share, stride):
        branches = MultiConvolution(64, 64, stride=stride).static_branches()
        monkeypatch.setattr(sys.modules["convattn.ops.offset_convolution"], "skips_zeros", lambda x: False)
        assert map_multiply_adds(branches, size) == map_multiply_adds(branches)
        monkeypatch.setattr(sys.modules["convattn.ops.offset_convolution"], "skips_zeros", lambda x: True)
        costs, everything = map_multiply_adds(branches, size), map_multiply_adds(branches)
        assert (costs["separate"], costs["dense"]) == (everything["separate"], everything["dense"])
        ones = torch.ones(1, 1, *size)
        reached = sum(on_map(ones, branch).sum() for branch in branches)
        shared = ones[..., ::stride, ::stride].sum()  # the centre is a tap of both
        expected = (reached - shared) / shared / 33
        assert costs["gathered"] / everything["gathered"] == pytest.approx(expected.item())
        assert share is None or stride == 2 or expected.item() == pytest.approx(share)

    @pytest.mark.skipif(bool(backends()["offset_convolution"]["native"]), reason="no CPU kernels here")
    def test_small_maps_are_gathered(self):
        forms = []
        for size in [(7, 7), (14, 14), (56, 56), None]:
            layer = MultiConvolution(256, 256)
            layer.reparameterize(size=size)
            forms.append(layer.reparameterized.form)
        assert forms == ["gathered", "gathered", "separate", "separate"]
        layer = MultiConvolution(256, 256, dtype=torch.float64)
        layer.reparameterize(size=(7, 7))
        assert layer.reparameterized.form == "separate", "the kernels compute in float32"

    @pytest.mark.skipif(bool(backends()["offset_convolution"]["native"]), reason="no CPU kernels here")
    def test_optimize_counts_on_the_maps_of_its_example(self):
        net = nn.Sequential(trained(XVolution, 64, 64, dtype=None), nn.AvgPool2d(4), MultiConvolution(64, 64)).eval()
        reports = []
        for example in (torch.randn(1, 64, 28, 28), None):
            optimize(net, example, report=reports.append)
        assert [list(report.operators.values()) for report in reports] == [["separate", "gathered"], ["separate"] * 2]
        assert reports[0].relative_difference < 1e-5

    def test_the_fastest_is_taken(self, monkeypatch):
        times = {"separate": 3.0, "gathered": 1.0}
        monkeypatch.setattr(folding, "_seconds", lambda candidate, example: times[candidate.form])
        layer = trained(XVolution, 4, 8)
        folded = folded_copy(layer, example=torch.zeros(1, 4, 5, 5, dtype=torch.float64))
        assert folded.reparameterized.form == "gathered"

    def test_least_time(self):
        layer, x = trained(XVolution, 4, 8), torch.randn(1, 4, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(folded_copy(layer, example=x)(x), layer(x), **EXACT)
