"""The inference forms of X-volution give what the operator gave, and it is one dynamic convolution (eq. 9)."""

import copy
import sys
from functools import partial

import pytest
import timm.utils
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn.cost  # noqa: F401  (tells a FLOP counter what the operators cost)
from convattn.layers import ACmix, folding
from convattn.layers.pssa import PSSA
from convattn.layers.static_convolution import map_multiply_adds, merged_taps, static_multiply_adds
from convattn.layers.xvolution import MultiConvolution, XVolution
from convattn.ops import backends
from convattn.optimize import optimize

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SIZES = [(1, 1), (2, 3), (9, 6)]
FORMS = ("separate", "dense", "gathered")


class Squares(nn.Module):
    """An attention of which nothing is known."""

    def __init__(self, c_in, c_out, *, stride, dilation, device, dtype):
        super().__init__()
        self.stride = stride
        self.mix = nn.Conv2d(c_in, c_out, 1, device=device, dtype=dtype)

    def forward(self, x):
        return self.mix(x).square()[..., :: self.stride[0], :: self.stride[1]]


ATTENTIONS = {
    f"pssa-{reading}-{heads}": {"num_heads": heads, "reading": reading}
    for reading in ("value", "product")
    for heads in (1, 4, "channels")
}
ATTENTIONS |= {
    "pssa-bias": {"num_heads": 4, "position": "bias"},
    "global": {"attention": "global"},
    "involution": {"attention": "involution"},
    "acmix": {"attention": partial(ACmix, num_heads=2)},
    "unknown": {"attention": Squares},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trained(kind, *args, **options):
    """In eval mode, every parameter and statistic away from where it starts."""
    layer = kind(*args, **{"dtype": torch.float64} | options).eval()
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.2, 2)
            elif value.is_floating_point():
                value.normal_().mul_(0.5)
    return layer


def folded_copy(layer, *args, **options):
    layer = copy.deepcopy(layer)
    layer.reparameterize(*args, **options)
    return layer


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def trained_batch_norm(channels):
    return trained(lambda **options: nn.BatchNorm2d(channels, **options))


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("stride", [1, 2])
class TestEveryAttention:
    @pytest.mark.parametrize("channels", [(6, 8), (8, 8)], ids=str)
    def test_same_outputs(self, name, stride, channels):
        layer = trained(XVolution, *channels, stride=stride, **ATTENTIONS[name])
        folded = folded_copy(layer)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        for size in SIZES:
            x = torch.randn(2, channels[0], *size, dtype=torch.float64)
            expected = layer(x)
            assert relative_error(folded(x), expected) < 1e-12
            single = copy.deepcopy(folded).float()(x.float())
            assert relative_error(single, copy.deepcopy(layer).float()(x.float())) < 1e-5

    def test_gradients_of_the_input(self, name, stride):
        layer = trained(XVolution, 8, 8, stride=stride, **ATTENTIONS[name])
        folded = folded_copy(layer)
        x = torch.randn(2, 8, 7, 6, dtype=torch.float64, requires_grad=True)
        ours, expected = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (folded, layer))
        assert relative_error(ours, expected) < 1e-12
        assert all(p.requires_grad for p in folded.parameters())

    def test_takes_over_what_follows(self, name, stride):
        layer = trained(XVolution, 8, 8, stride=stride, **ATTENTIONS[name])
        norms = [trained_batch_norm(8) for _ in range(2)]
        folded = folded_copy(layer)
        for norm in norms:
            folded.reparameterized.absorb(norm)
        x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
        assert relative_error(folded(x), nn.Sequential(layer, *norms)(x)) < 1e-12

    def test_it_is_a_dynamic_convolution(self, name, stride):
        layer = trained(XVolution, 4, 8, stride=stride, **ATTENTIONS[name])
        x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
        if name in ("global", "acmix", "unknown"):
            with pytest.raises(TypeError, match="needs attention over fixed offsets"):
                layer.as_dynamic_kernel(x)
            return
        kernel = layer.as_dynamic_kernel(x)
        assert relative_error(kernel(x), layer(x)) < 1e-12
        assert relative_error(pixel_by_pixel(kernel, x, stride), layer(x)) < 1e-12
        taps = kernel.window().ne(0).any(-1).any(-1).any(0).any(0).any(0)
        static = {*window(3), *window(5, 2)}
        size, offsets = 9, static
        if name == "involution":
            offsets = static | {*window(7)}
        elif "product" not in name:
            size, offsets = 11, static | {*PSSA(4, 8).neighborhood.offsets}
            assert len(offsets) == 49
        assert taps.shape == (size, size)
        assert {(i - size // 2, j - size // 2) for i, j in taps.nonzero().tolist()} == offsets


def window(size, step=1):
    return [(step * (i - size // 2), step * (j - size // 2)) for i in range(size) for j in range(size)]


def pixel_by_pixel(kernel, x, stride):
    """Eq. 9 to the letter: every output by itself, from the window around it."""
    weights = kernel.window()
    weights = weights.expand(len(x), *weights.shape[1:5], *((n - 1) // stride + 1 for n in x.shape[2:]))
    (kh, kw), padded = weights.shape[3:5], F.pad(x, [weights.shape[4] // 2] * 2 + [weights.shape[3] // 2] * 2)
    out = x.new_zeros(len(x), weights.shape[1], *weights.shape[5:])
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            seen = padded[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
            out[:, :, i, j] = torch.einsum("bcdyx,bdyx->bc", weights[..., i, j], seen)
    return out + kernel.bias


def test_a_converted_convolution_is_a_dynamic_convolution():
    layer = XVolution.around(nn.Conv2d(4, 8, 3, 2, 1, dtype=torch.float64), num_heads=2).eval()
    nn.init.normal_(layer.attention_norm.weight)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer.as_dynamic_kernel(x)(x), layer(x), **EXACT)


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


class TestConventions:
    def test_timm_reparameterizes_every_operator(self):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            trained(XVolution, 8, 8, dtype=None),
            nn.Sequential(trained(MultiConvolution, 8, 4, 1, dtype=None), nn.ReLU()),
            PSSA(4, 4),
            trained(XVolution, 4, 4, attention="involution", dtype=None),
        ).eval()
        x = torch.randn(1, 3, 9, 9)
        fast = timm.utils.reparameterize_model(net)
        assert (fast[1].reparameterized.form, fast[2][0].reparameterized.form) == ("separate", "dense")
        assert fast[1].reparameterized.attention.reparameterized.form == "tied"
        assert fast[3].reparameterized.form == "tied"
        assert net[1].reparameterized is None
        assert relative_error(fast(x), net(x)) < 1e-5

    def test_a_second_call_does_nothing(self):
        layer = folded_copy(trained(XVolution, 4, 8), "gathered")
        before = layer.reparameterized
        layer.reparameterize()
        layer.reparameterize("gathered")
        assert layer.reparameterized is before
        with pytest.raises(ValueError, match=r"is reparameterized as 'gathered'.*to have it 'dense'"):
            layer.reparameterize("dense")

    def test_the_trained_parameters_are_gone(self):
        for form in FORMS:
            layer = folded_copy(trained(XVolution, 4, 8), form)
            assert {name.split(".")[0] for name in layer.state_dict()} == {"reparameterized"}
            other = folded_copy(trained(XVolution, 4, 8), form)
            other.load_state_dict(layer.state_dict())
            x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
            assert torch.equal(other(x), layer(x))

    def test_the_original_keeps_its_tensors(self):
        layer = trained(XVolution, 4, 8)
        kept = {name: value.clone() for name, value in layer.state_dict().items()}
        tensors = dict(layer.state_dict(keep_vars=True))
        layer.reparameterize()
        layer.reparameterized.absorb(trained_batch_norm(8))
        assert all(torch.equal(tensors[name], value) for name, value in kept.items())

    def test_frozen_stays_frozen(self):
        for form in FORMS:
            folded = folded_copy(trained(XVolution, 4, 8).requires_grad_(False), form)
            folded.reparameterized.absorb(trained_batch_norm(8))
            assert not any(p.requires_grad for p in folded.parameters())

    def test_hooks_go_on_listening(self):
        layer = trained(XVolution, 4, 4)
        heard = []
        layer.convolution.register_forward_hook(lambda *_: heard.append("convolution"))
        layer.attention.register_forward_hook(lambda *_: heard.append("attention"))
        folded, x = folded_copy(layer), torch.randn(1, 4, 5, 6, dtype=torch.float64)
        expected = layer(x)
        heard.clear()
        torch.testing.assert_close(folded(x), expected, **EXACT)
        assert heard == ["convolution", "attention"]

    def test_a_convolution_made_by_a_parametrization(self):
        layer = trained(XVolution, 4, 8)
        nn.utils.parametrizations.weight_norm(layer.convolution)
        folded = folded_copy(layer)
        folded.reparameterized.absorb(norm := trained_batch_norm(8))
        x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(folded(x), norm(layer(x)), **EXACT)

    def test_no_attention_where_its_gain_is_zero(self):
        layer = trained(XVolution, 4, 8)
        nn.init.zeros_(layer.attention_norm.weight)
        folded, x = folded_copy(layer), torch.randn(1, 4, 5, 6, dtype=torch.float64)
        assert folded.reparameterized.attention is None
        assert "no attention" in repr(folded)
        torch.testing.assert_close(folded(x), layer(x), **EXACT)

    def test_meta(self):
        for form in FORMS:
            layer = XVolution(8, 8, stride=2, device="meta")
            layer.reparameterize(form)
            layer.reparameterized.absorb(nn.BatchNorm2d(8, device="meta"))
            assert layer(torch.empty(2, 8, 7, 9, device="meta")).shape == (2, 8, 4, 5)
            assert {p.device.type for p in layer.parameters()} == {"meta"}


def _without_statistics():
    layer = XVolution(4, 8)
    layer.dilated_norm = nn.BatchNorm2d(8, track_running_stats=False)
    return layer


def _with_pooling():
    layer = XVolution(4, 8)
    layer.dilated = nn.AvgPool2d(3, 1, 1)
    return layer


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: XVolution(4, 8).reparameterize("fast"), ValueError, "form must be one of .*'gathered'.* got 'fast'"),
        (
            lambda: XVolution.around(nn.Conv2d(4, 8, 3)).reparameterize("dense"),
            ValueError,
            "merges convolutions centred.*'separate' would do",
        ),
        (lambda: _without_statistics().reparameterize(), ValueError, "no running statistics"),
        (lambda: _with_pooling().reparameterize(), TypeError, "branches that are nn.Conv2d, got AvgPool2d"),
        (
            lambda: folded_copy(XVolution(4, 8)).reparameterized.absorb(nn.BatchNorm2d(9)),
            ValueError,
            "the batch norm has 9 channels, the operator 8",
        ),
        (lambda: XVolution(4, 8).as_dynamic_kernel(torch.zeros(1, 4, 2, 2)), ValueError, r"call eval\(\)"),
        (
            lambda: folded_copy(XVolution(4, 8)).as_dynamic_kernel(torch.zeros(1, 4, 2, 2)),
            ValueError,
            "before reparameterize",
        ),
        (
            lambda: XVolution.around(nn.Conv2d(4, 8, 3)).eval().as_dynamic_kernel(torch.zeros(1, 4, 3, 3)),
            TypeError,
            "takes convolutions of odd kernels",
        ),
    ],
)
def test_misuse_is_named(act, error, message):
    with pytest.raises(error, match=message):
        act()
