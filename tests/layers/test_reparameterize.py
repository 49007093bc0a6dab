"""The inference forms of ACmix give what the operator gave."""

import copy

import pytest
import timm.utils
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn.cost  # noqa: F401  (teaches the counter our operators)
from convattn import ACmix, LocalAttention2d
from convattn.layers import LocalAttention, folding
from convattn.layers.acmix_forms import FORMS, Parts, multiply_adds
from convattn.layers.folding import batch_norm_line
from tests.drawing import moved
from tests.layers.folding_cases import EXACT, SIZES, folded_copy
from tests.quick import slow_but


def trained(*args, **options):
    """An operator whose parameters are away from where they start."""
    return moved(ACmix(*args, **{"dtype": torch.float64} | options))


def trained_batch_norm(channels, **options):
    norm = nn.BatchNorm2d(channels, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for value in (*norm.parameters(), norm.running_mean):
            value.copy_(torch.randn_like(value))
        norm.running_var.uniform_(0.2, 2)
    return norm


def assert_same(layer, folded, c_in):
    for size in SIZES:
        x = torch.randn(2, c_in, *size, dtype=torch.float64)
        torch.testing.assert_close(folded(x), layer(x), **EXACT)


class FewQueries(nn.Module):
    """An attention path whose queries and keys have a quarter of the channels."""

    query_channels = 2

    def forward(self, q, k, v):
        return v * (q * k).sum(1, keepdim=True).sigmoid()


pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("form", FORMS)
class TestEveryForm:
    @pytest.mark.parametrize("mix", ["free", "alpha", "convex", "sum"])
    @pytest.mark.parametrize("shift", ["learnable", "random", "single", "fixed", "tensor"])
    def test_mix_and_shift(self, form, mix, shift):
        layer = trained(6, 8, mix=mix, shift=shift, attention_kernel_size=3)
        assert_same(layer, folded_copy(layer, form), 6)

    @pytest.mark.parametrize("position", ["linear", "table", None])
    @pytest.mark.parametrize("num_heads", [1, 2, 8])
    def test_position_and_heads(self, form, position, num_heads):
        layer = trained(3, 8, position=position, num_heads=num_heads, attention_kernel_size=(3, 5))
        assert_same(layer, folded_copy(layer, form), 3)

    @pytest.mark.parametrize("kernel", [1, 3, 5, (1, 3)], ids=str)
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), ((1, 3), 2), (2, (3, 1))], ids=str)
    def test_geometry(self, form, kernel, stride, dilation):
        layer = trained(3, 6, num_heads=2, kernel_size=kernel, stride=stride, dilation=dilation)
        assert_same(layer, folded_copy(layer, form), 3)

    @pytest.mark.parametrize("shift", ["learnable", "single", "fixed", "tensor"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_any_attention_path_and_the_bias_of_fc(self, form, shift, bias):
        layer = trained(6, 8, attention=FewQueries(), convolution_bias=bias, shift=shift)
        assert layer.convolution.maps == 6
        folded = folded_copy(layer, form)
        assert_same(layer, folded, 6)
        norm = trained_batch_norm(8)
        folded.reparameterized.absorb(norm)
        assert_same(nn.Sequential(layer, norm), folded, 6)

    @pytest.mark.parametrize("shift", ["learnable", "single", "fixed"])
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("activation", ["none", "relu"])
    def test_takes_over_what_follows(self, form, shift, affine, activation):
        layer = trained(6, 8, stride=2, shift=shift)
        norms = [trained_batch_norm(8, affine=affine), trained_batch_norm(8)]
        folded = folded_copy(layer, form)
        for norm in norms:
            folded.reparameterized.absorb(norm)
        folded.reparameterized.absorb(activation=activation)
        ending = nn.ReLU() if activation == "relu" else nn.Identity()
        assert_same(nn.Sequential(layer, *norms, ending), folded, 6)
        assert folded.reparameterized.form == form
        assert f"form='{form}', absorbed batch norm{' and relu' * (activation == 'relu')}" in repr(folded)

    def test_another_attention_path(self, form):
        class Product(nn.Module):
            def forward(self, q, k, v):
                return (q * k + v)[..., ::2, ::2]

        layer = trained(4, 8, attention=Product(), stride=2)
        assert_same(layer, folded_copy(layer, form), 4)

    def test_one_image_and_none(self, form):
        layer = trained(4, 8)
        folded = folded_copy(layer, form)
        x = torch.randn(4, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(folded(x), layer(x), **EXACT)
        assert folded(x.new_empty(0, 4, 5, 6)).shape == (0, 8, 5, 6)
        with pytest.raises(ValueError, match=r"must be \[B, 4, H, W\]"):
            folded(x[:3])

    def test_attention_with_heads_of_its_own(self, form):
        layer = trained(4, 8, num_heads=2, attention=LocalAttention(8, num_heads=4, kernel_size=5, dtype=torch.float64))
        assert_same(layer, folded_copy(layer, form), 4)

    def test_projection_without_bias(self, form):
        layer = trained(4, 8)
        layer.projection.bias = None
        folded = folded_copy(layer, form)
        assert_same(layer, folded, 4)
        assert not any("projection.bias" in name or "border" in name for name in folded.state_dict())

    def test_projection_made_by_a_parametrization(self, form):
        layer = trained(4, 8)
        nn.utils.parametrizations.weight_norm(layer.projection)
        folded = folded_copy(layer, form)
        assert_same(layer, folded, 4)

    @pytest.mark.parametrize("activation", ["none", "relu"])
    def test_gradients_of_the_input(self, form, activation):
        layer = trained(4, 8, stride=2)
        folded = folded_copy(layer, form)
        folded.reparameterized.absorb(activation=activation)
        x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
        ramp = torch.linspace(-1, 1, 2 * 8 * 4 * 3, dtype=torch.float64).view(2, 8, 4, 3)
        out = layer(x).relu() if activation == "relu" else layer(x)
        (expected,) = torch.autograd.grad(out, x, ramp)
        (got,) = torch.autograd.grad(folded(x), x, ramp)
        torch.testing.assert_close(got, expected, **EXACT)
        assert all(p.requires_grad for p in folded.parameters())
        for gradient in torch.autograd.grad(folded(x).square().sum(), [*folded.parameters()]):
            assert gradient.isfinite().all()

    def test_frozen_stays_frozen(self, form):
        folded = folded_copy(trained(4, 8).requires_grad_(False), form)
        folded.reparameterized.absorb(trained_batch_norm(8))
        assert not any(p.requires_grad for p in folded.parameters())

    def test_state_dict_round_trip(self, form):
        layer, other = trained(4, 8), trained(4, 8)
        folded, loaded = folded_copy(layer, form), folded_copy(other, form)
        loaded.load_state_dict(folded.state_dict())
        assert_same(layer, loaded, 4)
        assert not {name for name in folded.state_dict() if not name.startswith("reparameterized.")}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_dtypes(self, form, dtype):
        layer = trained(16, 16, dtype=dtype)
        folded = folded_copy(layer, form)
        folded.reparameterized.absorb(trained_batch_norm(16).to(dtype))
        assert {p.dtype for p in folded.parameters()} == {dtype}
        x = torch.randn(2, 16, 9, 7, dtype=dtype)
        exact = folded_copy(layer.double(), form)(x.double())
        error = (folded_copy(layer.to(dtype), form)(x).double() - exact).abs().max() / exact.abs().max()
        assert error < 8 * torch.finfo(dtype).eps
        assert folded(x).dtype == dtype

    def test_conversions(self, form):
        layer = trained(8, 8)
        folded = folded_copy(layer, form)
        x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
        last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
        out = last(x.contiguous(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, layer(x), **EXACT)
        torch.testing.assert_close(folded.float()(x.float()), layer.float()(x.float()), rtol=1e-4, atol=1e-5)

    def test_meta(self, form):
        layer = ACmix(8, 8, mix="sum", stride=2, device="meta")
        layer.reparameterize(form)
        layer.reparameterized.absorb(nn.BatchNorm2d(8, device="meta"))
        assert layer(torch.empty(2, 8, 7, 9, device="meta")).shape == (2, 8, 4, 5)
        assert {p.device.type for p in layer.parameters()} == {"meta"}

    def test_export_with_free_sizes(self, form):
        layer = trained(4, 8, stride=2)
        folded = folded_copy(layer, form)
        folded.reparameterized.absorb(trained_batch_norm(8), "relu")
        free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
        example = torch.randn(2, 4, 12, 10, dtype=torch.float64)
        program = torch.export.export(folded, (example,), dynamic_shapes=(free,)).module()
        for shape in [(1, 4, 7, 9), (3, 4, 16, 5)]:
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(program(x), folded(x), **EXACT)


@pytest.mark.parametrize("form", slow_but(["grouped"], FORMS))
def test_compiles(form):
    folded = folded_copy(trained(4, 8), form)
    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(compiled(x), folded(x), **EXACT)
    gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (compiled, folded)]
    torch.testing.assert_close(*gradients, **EXACT)


class TestTheChoice:
    def test_fewest_multiply_adds(self):
        narrow, wide, many_heads = ACmix(3, 32), ACmix(32, 32), ACmix(32, 32, num_heads=8)
        for layer, form in ((narrow, "dense"), (wide, "grouped"), (many_heads, "unfused")):
            counted = multiply_adds(Parts(layer.projection, layer.attention, layer.convolution, *layer.mix.rates()))
            assert form == min(counted, key=counted.get)
            layer.reparameterize()
            assert layer.reparameterized.form == form

    @pytest.mark.parametrize("shift", ["learnable", "fixed", "tensor"])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("form", FORMS)
    def test_counts_are_those_of_a_counter(self, form, stride, shift):
        layer = ACmix(12, 16, stride=stride, shift=shift)
        counted = multiply_adds(Parts(layer.projection, layer.attention, layer.convolution, *layer.mix.rates()))[form]
        layer.projection.bias = None  # what it adds at the border depends on the size of the map
        # a foreign attention path without products keeps the operator apart, where a counter sees each step
        layer.attention = nn.Identity()
        layer.attention.forward = lambda q, k, v: q[..., ::stride, ::stride]
        layer.reparameterize(form)
        expected = counted * 16
        if shift == "tensor" and form == "unfused":
            expected -= 16 * 9 * 4 * stride**2  # sums, which a counter of products leaves out
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, 12, 4 * stride, 4 * stride))
        assert counter.get_total_flops() == 2 * expected

    def test_least_time(self):
        layer = trained(8, 8)
        folded = copy.deepcopy(layer)
        folded.reparameterize(example=torch.randn(1, 8, 5, 5, dtype=torch.float64))
        assert folded.reparameterized.form in FORMS
        assert_same(layer, folded, 8)

    def test_the_fastest_is_taken(self, monkeypatch):
        times = {"grouped": 3.0, "dense": 1.0, "unfused": 2.0}
        monkeypatch.setattr(folding, "_seconds", lambda candidate, example: times[candidate.form])
        layer = trained(8, 8)
        layer.reparameterize(example=torch.zeros(1, 8, 5, 5, dtype=torch.float64))
        assert layer.reparameterized.form == "dense"


class TestConventions:
    def test_timm_reparameterizes_every_operator(self):
        net = nn.Sequential(nn.Conv2d(3, 16, 3), trained(16, 8, dtype=None), nn.Sequential(ACmix(8, 16), nn.ReLU()))
        x = torch.randn(1, 3, 9, 9)
        fast = timm.utils.reparameterize_model(net)
        assert (fast[1].reparameterized.form, fast[2][0].reparameterized.form) == ("grouped", "grouped")
        assert net[1].reparameterized is None
        torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)

    def test_a_second_call_does_nothing(self):
        layer = folded_copy(trained(4, 8), "dense")
        before = layer.reparameterized
        layer.reparameterize()
        layer.reparameterize("dense")
        assert layer.reparameterized is before

    def test_the_trained_parameters_are_gone(self):
        layer = trained(4, 8)
        layer.reparameterize("grouped")
        assert {name.split(".")[0] for name, _ in layer.named_parameters()} == {"reparameterized"}
        assert layer.no_weight_decay() == set()
        assert "form='grouped'" in repr(layer)

    def test_the_original_keeps_its_tensors(self):
        layer = trained(4, 8)
        kept = {name: value.clone() for name, value in layer.state_dict().items()}
        tensors = dict(layer.named_parameters())
        layer.reparameterize("unfused")
        layer.reparameterized.absorb(trained_batch_norm(8))
        assert all(torch.equal(tensors[name], value) for name, value in kept.items())

    def test_autocast(self):
        for form in FORMS:
            layer = folded_copy(trained(8, 8, dtype=torch.float32), form)
            x = torch.randn(2, 8, 9, 7)
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)


def test_batch_norm_line():
    norm = trained_batch_norm(5)
    gain, shift = batch_norm_line(norm)
    x = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(x * gain[:, None, None] + shift[:, None, None], norm(x), **EXACT)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda m: m.reparameterize("quick"),
            ValueError,
            "form must be one of 'auto', 'grouped', 'dense', 'unfused', got 'quick'",
        ),
        (
            lambda m: [m.reparameterize(form) for form in FORMS],
            ValueError,
            "is reparameterized as 'grouped'.*have it 'de",
        ),
        (lambda m: _absorb(m, nn.BatchNorm2d(8, track_running_stats=False)), ValueError, "no running statistics"),
        (lambda m: _absorb(m, nn.BatchNorm2d(9)), ValueError, "the batch norm has 9 channels, the operator 8"),
        (lambda m: _absorb(m, None, "gelu"), ValueError, "activation must be 'none' or 'relu', got 'gelu'"),
        (lambda m: [_absorb(m, None, "relu"), _absorb(m, nn.BatchNorm2d(8))], ValueError, "after a ReLU"),
    ],
)
def test_misuse_is_named(act, error, message):
    with pytest.raises(error, match=message):
        act(ACmix(8, 8))


def _absorb(layer, *args):
    layer.reparameterize()
    layer.reparameterized.absorb(*args)


@pytest.mark.parametrize(
    ("name", "part"),
    [("projection", nn.Conv2d(8, 24, 3)), ("projection", nn.Identity()), ("convolution", LocalAttention2d(8, 8))],
    ids=["kernel", "no convolution", "another path"],
)
def test_a_part_that_does_not_fold_is_named(name, part):
    layer = ACmix(8, 8)
    setattr(layer, name, part)
    with pytest.raises(TypeError, match=f"reparameterize folds a {name}"):
        layer.reparameterize()
    assert layer.reparameterized is None
