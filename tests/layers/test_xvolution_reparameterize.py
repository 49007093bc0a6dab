"""The inference forms of X-volution give what the operator gave, and it is one dynamic convolution (eq. 9)."""

import copy
from functools import partial

import pytest
import timm.utils
import torch
import torch.nn.functional as F
from torch import nn

import convattn.cost  # noqa: F401  (tells a FLOP counter what the operators cost)
from convattn.layers import ACmix
from convattn.layers.pssa import PSSA
from convattn.layers.xvolution import MultiConvolution, XVolution
from tests.layers.folding_cases import EXACT, SIZES, folded_copy, relative_error, trained, trained_batch_norm

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
    "pssa-centred": {"lengths": (0, 1, 3, 5)},
    "pssa-summed": {"num_heads": 2, "position": "bias", "propagation": "summed"},
    "pssa-product-summed": {"reading": "product", "propagation": "summed", "lengths": (0, 2)},
    "pssa-equation-9": {"propagation": "summed", "lengths": (0, 1, 3, 5), "dilated_kernel_size": None},
    "global": {"attention": "global"},
    "involution": {"attention": "involution"},
    "acmix": {"attention": partial(ACmix, num_heads=2)},
    "unknown": {"attention": Squares},
}

pytestmark = pytest.mark.usefixtures("seeded")


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
        static = {*window(3)} | (set() if "equation-9" in name else {*window(5, 2)})
        size, offsets, around = 9, static, {*PSSA(4, 8).neighborhood.offsets}
        if name == "involution":
            offsets = static | {*window(7)}
        elif name in ("pssa-summed", "pssa-equation-9"):  # two steps; the farthest leave this map
            both = static | {(a + c, b + d) for a, b in around | {(0, 0)} for c, d in around | {(0, 0)}}
            assert taps.shape == (21, 21)
            assert set(kernel.neighborhood.offsets) == both
            return
        elif "product" not in name:
            size, offsets = 11, static | around
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
