"""Global attention, and PVT's with and without ACmix, against plain formulas in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn import ACmix
from convattn.layers.folding import PASS_SAVED
from convattn.layers.global_attention import GlobalAttention
from convattn.layers.shift_convolution import ShiftConvolution
from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.layers.spatial_reduction_forms import ReducedConvolution, multiply_adds
from convattn.layers.tokens import pad_to_multiple
from tests.drawing import moved
from tests.quick import sampled

EXACT = {"rtol": 1e-12, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("seeded")


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def softmax_attention(q, k, v, heads):
    """Eq. 20 on maps, written out: ``[B, C, H, W]``."""
    queries, keys, values = (x.flatten(2).unflatten(1, (heads, -1)) for x in (q, k, v))
    logits = torch.einsum("bnct,bncs->bnts", queries, keys) / queries.shape[2] ** 0.5
    out = torch.einsum("bnts,bncs->bnct", logits.softmax(-1), values)
    return out.flatten(1, 2).unflatten(2, q.shape[-2:])


def spatial_reduction_attention(layer, x, size):
    """q, k, v of PVT and what ``proj`` gives, from tokens; padding by hand."""
    part, p, c = layer.projection, layer.projection.num_prefix_tokens, x.shape[2]
    source = x
    if part.sr_ratio > 1:
        cells = [-(-n // part.sr_ratio) for n in size]
        full = x.new_zeros(x.shape[0], c, *(n * part.sr_ratio for n in cells))
        full[:, :, : size[0], : size[1]] = x[:, p:].transpose(1, 2).reshape(-1, c, *size)
        reduced = F.conv2d(full, part.sr.weight, part.sr.bias, stride=part.sr_ratio).flatten(2).transpose(1, 2)
        source = torch.cat([x[:, :p], F.layer_norm(reduced, (c,), part.norm.weight, part.norm.bias)], 1)
    q = F.linear(x, part.q.weight, part.q.bias)
    k, v = F.linear(source, part.kv.weight, part.kv.bias).split(c, 2)
    maps = (tokens.transpose(1, 2).unsqueeze(3) for tokens in (q, k, v))
    out = softmax_attention(*maps, layer.attention.num_heads).squeeze(3).transpose(1, 2)
    return q, k, v, F.linear(out, layer.attention.proj.weight, layer.attention.proj.bias)


def reduced_acmix(layer, x, size):
    """PVT-ACmix's operator as it is defined: k and v enlarged, 3N maps connected, moved by a grouped convolution."""
    p, ratio = layer.projection.num_prefix_tokens, layer.projection.sr_ratio
    path, heads, c = layer.convolution, layer.attention.num_heads, x.shape[2]
    q, k, v, attention = spatial_reduction_attention(layer, x, size)
    cells = [-(-n // ratio) for n in size]
    maps = x.new_zeros(x.shape[0], 3 * c, *(n * ratio for n in cells))
    maps[:, :c, : size[0], : size[1]] = q[:, p:].transpose(1, 2).unflatten(2, size)
    for i, small in ((1, k), (2, v)):
        small = small[:, p:].transpose(1, 2).unflatten(2, cells)
        maps[:, i * c : (i + 1) * c] = small.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
    d = c // heads
    connected = torch.stack(
        [sum(path.fc[m, t] * maps[:, t * d : (t + 1) * d] for t in range(3 * heads)) for m in range(9)], 2
    )
    moved = F.conv2d(connected.flatten(1, 2), path.kernel, padding=1, groups=d)
    out = layer.mix.alpha * attention
    out[:, p:] += layer.mix.beta * moved[:, :, : size[0], : size[1]].flatten(2).transpose(1, 2)
    return out


class TestGlobalAttention:
    @pytest.mark.parametrize("heads", [1, 2, 8])
    @pytest.mark.parametrize(("size", "keys"), [((1, 1), (1, 1)), ((5, 7), (5, 7)), ((6, 4), (3, 2)), ((2, 3), (4, 5))])
    def test_equals_a_softmax_forward_and_gradient(self, heads, size, keys):
        inputs = [draw(2, 8, *size), draw(2, 8, *keys), draw(2, 8, *keys)]
        ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
        out, expected = GlobalAttention(8, num_heads=heads)(*ours), softmax_attention(*theirs, heads)
        torch.testing.assert_close(out, expected, **EXACT)
        weight = draw(*out.shape)
        for a, b in zip(
            torch.autograd.grad(out, ours, weight), torch.autograd.grad(expected, theirs, weight), strict=True
        ):
            torch.testing.assert_close(a, b, **EXACT)

    def test_output_projection_and_narrow_queries(self):
        path = GlobalAttention(8, num_heads=2, query_channels=4, output="projected").double()
        q, k, v = draw(2, 4, 3, 5), draw(2, 4, 2, 2), draw(2, 8, 2, 2)
        mixed = softmax_attention(q, k, v, 2).movedim(1, -1)
        torch.testing.assert_close(path(q, k, v), path.proj(mixed).movedim(-1, 1), **EXACT)

    @pytest.mark.parametrize("stride", [1, 2, (3, 1)])
    @pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 6)])
    def test_is_an_attention_path_of_acmix(self, stride, size):
        attention = GlobalAttention(8, num_heads=2, stride=stride)
        layer = moved(ACmix(6, 8, num_heads=2, stride=stride, attention=attention).double())
        x = draw(2, 6, *size)
        rows, columns = stride if isinstance(stride, tuple) else (stride, stride)
        q, k, v = layer.projection(x).chunk(3, 1)
        expected = layer.mix(softmax_attention(q[..., ::rows, ::columns], k, v, 2), layer.convolution(q, k, v))
        torch.testing.assert_close(layer(x), expected, **EXACT)
        layer.reparameterize()
        torch.testing.assert_close(layer(x), expected, **EXACT)

    def test_narrow_queries_in_acmix(self):
        layer = ACmix(6, 8, num_heads=4, attention=GlobalAttention(8, num_heads=4, query_channels=4))
        assert layer.convolution.maps == 8
        assert layer(torch.randn(1, 6, 5, 5)).shape == (1, 8, 5, 5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_half_precision_and_layouts(self, dtype, layout):
        q, k, v = (draw(2, 8, 5, 4).to(dtype).to(memory_format=layout) for _ in range(3))
        out = GlobalAttention(8, num_heads=2)(q, k, v)
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), softmax_attention(q.double(), k.double(), v.double(), 2), atol=0.02, rtol=0.02
        )

    def test_empty_batch_and_meta(self):
        path = GlobalAttention(8, num_heads=2, stride=2, output="projected")
        assert path(*(torch.zeros(0, 8, 5, 4) for _ in range(3))).shape == (0, 8, 3, 2)
        with torch.device("meta"):
            path = GlobalAttention(8, stride=2, output="projected")
        assert path(*(torch.zeros(2, 8, 5, 4, device="meta") for _ in range(3))).shape == (2, 8, 3, 2)

    def test_export_with_dynamic_size(self):
        layer = ACmix(6, 8, num_heads=2, stride=2, attention=GlobalAttention(8, num_heads=2, stride=2)).eval()
        free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
        program = torch.export.export(layer, (torch.randn(2, 6, 8, 10),), dynamic_shapes={"x": free})
        x = torch.randn(3, 6, 7, 13)
        torch.testing.assert_close(program.module()(x), layer(x))

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="output must be one of"):
            GlobalAttention(8, output="linear")
        with pytest.raises(ValueError, match="query_channels=6 must be divisible by num_heads, got 4"):
            GlobalAttention(8, query_channels=6)
        path = GlobalAttention(8)
        q = torch.zeros(1, 8, 2, 2)
        with pytest.raises(ValueError, match=r"k must be \[B, 8, H, W\], got \[1, 4, 2, 2\]"):
            path(q, torch.zeros(1, 4, 2, 2), q)
        with pytest.raises(ValueError, match="k and v must be of one size"):
            path(q, q, torch.zeros(1, 8, 2, 3))


GEOMETRIES = [(1, 1, 0), (1, 2, 1), (2, 4, 0), (4, 1, 0), (3, 2, 2)]  # sr_ratio, heads, prefix tokens
SIZES = [(1, 1), (4, 8), (5, 7), (9, 3)]


def double_layer(kind, ratio, heads, prefix, **options):
    layer = kind(8, num_heads=heads, sr_ratio=ratio, num_prefix_tokens=prefix, dtype=torch.float64, **options)
    return moved(layer)


@pytest.mark.parametrize(("ratio", "heads", "prefix"), GEOMETRIES)
class TestSpatialReduction:
    def test_attention(self, ratio, heads, prefix):
        layer = double_layer(SpatialReductionAttention, ratio, heads, prefix)
        for size in SIZES:
            x = draw(2, prefix + size[0] * size[1], 8)
            torch.testing.assert_close(layer(x, size), spatial_reduction_attention(layer, x, size)[-1], **EXACT)

    def test_acmix_is_the_composition_of_its_definition(self, ratio, heads, prefix):
        layer = double_layer(SpatialReductionACmix, ratio, heads, prefix)
        for size in SIZES:
            x = draw(2, prefix + size[0] * size[1], 8).requires_grad_()
            out, expected = layer(x, size), reduced_acmix(layer, x, size)
            torch.testing.assert_close(out, expected, **EXACT)
            weight = draw(*out.shape)
            torch.testing.assert_close(
                torch.autograd.grad(out, x, weight), torch.autograd.grad(expected, x, weight), **EXACT
            )

    @pytest.mark.parametrize("form", ["grouped", "unfused"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"mix": "convex", "shift": "fixed"},
            {"mix": "alpha", "kernel_size": 5},
            {"mix": "sum", "shift": "tensor", "kernel_size": (1, 3)},
        ],
        ids=str,
    )
    def test_reparameterize_is_exact(self, ratio, heads, prefix, form, options):
        layer = double_layer(SpatialReductionACmix, ratio, heads, prefix, **options)
        folded, single = copy.deepcopy(layer), copy.deepcopy(layer).float()
        folded.reparameterize(form)
        single.reparameterize(form)
        assert not any("mix" in name for name, _ in folded.named_parameters())
        for size in SIZES:
            x = draw(2, prefix + size[0] * size[1], 8)
            expected = layer(x, size)
            torch.testing.assert_close(folded(x, size), expected, **EXACT)
            error = (single(x.float(), size).double() - expected).abs().max()
            assert error <= 1e-5 * max(1, expected.abs().max())


class OfMaps(nn.Module):
    """PVT's operator from map to map."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        size = (x.shape[2], x.shape[3])
        return self.layer(x.flatten(2).transpose(1, 2), size).transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize(
    ("ratio", "heads", "form"),
    sampled([(2, 2, "trained"), (4, 1, "trained"), (2, 2, "grouped"), (1, 2, "unfused")], 3),
)
def test_acmix_exports_with_dynamic_size_and_compiles(ratio, heads, form):
    layer = moved(SpatialReductionACmix(8, num_heads=heads, sr_ratio=ratio))
    if form != "trained":
        layer.reparameterize(form)
    net = OfMaps(layer).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=5), 3: torch.export.Dim("w", min=5)}
    program = torch.export.export(net, (torch.randn(2, 8, 12, 16),), dynamic_shapes={"x": free}).module()
    torch._dynamo.reset()  # the cases share the code of one forward, and its cache is small
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    for size in [(12, 8), (7, 13)]:
        x = torch.randn(3, 8, *size)
        torch.testing.assert_close(program(x), net(x))
        torch.testing.assert_close(compiled(x), net(x))


class Scaled(nn.Module):
    def forward(self, q, k, v):
        return q * v.mean((2, 3), keepdim=True)


class TestReparameterize:
    def test_a_replaced_attention_path_keeps_alpha(self):
        layer = double_layer(SpatialReductionACmix, 2, 2, 0)
        layer.attention = Scaled()
        x = draw(1, 12, 8)
        expected = layer(x, (3, 4))
        layer.reparameterize()
        torch.testing.assert_close(layer(x, (3, 4)), expected, **EXACT)
        assert layer.no_weight_decay() == {"reparameterized.mix.alpha"}

    def test_a_second_call_does_nothing(self):
        layer = double_layer(SpatialReductionACmix, 2, 2, 0)
        assert layer.no_weight_decay() == {"mix.alpha", "mix.beta"}
        layer.reparameterize("unfused")
        state = copy.deepcopy(layer.state_dict())
        layer.reparameterize()
        torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
        assert layer.reparameterized.form == "unfused"
        assert layer.no_weight_decay() == set()
        with pytest.raises(ValueError, match="reparameterized as 'unfused' and its trained parameters are gone"):
            layer.reparameterize("grouped")

    @pytest.mark.parametrize("form", ["grouped", "unfused"])
    def test_what_version_0_1_saved_of_a_form_loads(self, form):
        layer, other = (double_layer(SpatialReductionACmix, 2, 2, 0) for _ in range(2))
        for operator in (layer, other):
            operator.reparameterize(form)
        saved = {name.removeprefix("reparameterized."): value for name, value in layer.state_dict().items()}
        net = nn.Sequential(other)
        net.load_state_dict({f"0.{name}": value for name, value in saved.items()})
        x = draw(1, 12, 8)
        assert torch.equal(other(x, (3, 4)), layer(x, (3, 4)))

    def test_refusals(self):
        layer = SpatialReductionACmix(8, num_heads=2)
        with pytest.raises(ValueError, match="form must be one of"):
            layer.reparameterize("dense")
        layer.convolution = ShiftConvolution(8, num_heads=2, bias=True)
        with pytest.raises(TypeError, match="a ShiftConvolution without bias"):
            layer.reparameterize()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        layer = double_layer(SpatialReductionACmix, 2, 2, 0).to(dtype)
        x = draw(2, 35, 8).to(dtype)
        expected = layer(x, (5, 7)).float()
        layer.reparameterize("grouped")
        out = layer(x, (5, 7))
        assert out.dtype == dtype
        assert (out.float() - expected).abs().max() <= 0.05 * expected.abs().max()

    @pytest.mark.parametrize(
        ("channels", "heads", "ratio", "form"),
        [
            (64, 1, 8, "grouped"),
            (128, 2, 4, "grouped"),
            (320, 5, 2, "grouped"),
            (512, 8, 1, "grouped"),
            (64, 32, 1, "unfused"),
        ],
    )
    def test_the_form_follows_the_count(self, channels, heads, ratio, form):
        layer = SpatialReductionACmix(channels, num_heads=heads, sr_ratio=ratio)
        counted = multiply_adds(layer.convolution, ratio)
        layer.reparameterize()
        assert layer.reparameterized.form == form
        assert (counted["grouped"] <= PASS_SAVED * counted["unfused"]) == (form == "grouped")

    def test_the_count_is_what_torch_counts(self):
        from torch.utils.flop_counter import FlopCounterMode

        path = ShiftConvolution(16, num_heads=4)
        q, small = torch.zeros(1, 16, 6, 8), torch.zeros(1, 16, 3, 4)
        projected = 16 * 16 * (4 + 2)
        for form, module in (("unfused", path), ("grouped", ReducedConvolution(path, 2))):
            with FlopCounterMode(display=False) as counter:
                module(q, small, small)
            assert counter.get_total_flops() // 2 == (multiply_adds(path, 2)[form] - projected) * 12


def test_pad_to_multiple_returns_what_needs_none():
    x = torch.zeros(1, 2, 4, 8)
    assert pad_to_multiple(x, 4) is x
    assert pad_to_multiple(x, 3).shape == (1, 2, 6, 9)


def test_a_ratio_below_one_is_refused():
    with pytest.raises(ValueError, match="sr_ratio must be at least 1, got 0"):
        SpatialReductionAttention(8, num_heads=2, sr_ratio=0)
