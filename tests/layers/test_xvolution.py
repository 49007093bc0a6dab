"""X-volution stands where a convolution stood, and is the sum of its branches."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from convattn.layers import ACmix
from convattn.layers.global_attention import GlobalAttention2d
from convattn.layers.pssa import PSSA
from convattn.layers.xvolution import MultiConvolution, XVolution
from tests.layers.drop_in import DropIn, check_compiled
from tests.quick import slow_but

EXACT = {"rtol": 1e-12, "atol": 1e-12}
CONVOLUTION_LIKE = {
    "pssa": PSSA,
    "pssa-heads": partial(PSSA, num_heads=4, position="bias"),
    "pssa-channels": partial(PSSA, num_heads="channels"),
    "pssa-product": partial(PSSA, reading="product"),
    "pssa-summed": partial(PSSA, propagation="summed", lengths=(0, 1, 3)),
    "global": GlobalAttention2d,
    "multi-convolution": MultiConvolution,
    "one-convolution": partial(MultiConvolution, dilated_kernel_size=None),
    "xvolution": XVolution,
    "xvolution-equation-9": partial(XVolution, propagation="summed", lengths=(0, 1, 3, 5), dilated_kernel_size=None),
    "xvolution-global": partial(XVolution, attention="global"),
    "xvolution-involution": partial(XVolution, attention="involution"),
    "xvolution-module": partial(XVolution, attention=partial(ACmix, num_heads=2)),
}
FOLDED = ("pssa", "pssa-channels", "multi-convolution", "xvolution", "xvolution-involution", "xvolution-equation-9")


def folded(name, form):
    def make(*args, **options):
        layer = CONVOLUTION_LIKE[name](*args, **options)
        layer.reparameterize(*([] if name.startswith("pssa") else [form]))
        return layer

    return make


LAYERS = CONVOLUTION_LIKE | {f"folded-{name}": folded(name, "separate") for name in FOLDED}
LAYERS["gathered"] = folded("xvolution", "gathered")


@pytest.fixture(params=LAYERS, ids=str)
def make(request):
    """In evaluation: the batch norms tie the images of a batch in training."""
    torch.manual_seed(0)
    return lambda *args, **options: LAYERS[request.param](*args, **options).eval()


class TestDropIn(DropIn):
    """With the contract of every operator."""


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["pssa-product", "pssa-summed"],
        ["pssa-heads", "pssa-product", "pssa-summed", "xvolution", "folded-xvolution", "gathered"],
    ),
)
def test_compiles_without_a_graph_break(name):
    torch.manual_seed(0)
    check_compiled(LAYERS[name](4, 8, stride=2).eval(), "aot_eager")


def test_global_attention():
    torch.manual_seed(0)
    layer, x = GlobalAttention2d(3, 8, num_heads=2, stride=2, dtype=torch.float64), torch.randn(2, 3, 5, 4).double()
    q, k, v = layer.projection(x).unflatten(1, (3, 2, 4)).unbind(1)
    weights = torch.einsum("bndhw,bndyx->bnhwyx", q, k).mul(0.5).flatten(4).softmax(4)
    expected = torch.einsum("bnhwj,bndj->bndhw", weights, v.flatten(3)).flatten(1, 2)[..., ::2, ::2]
    torch.testing.assert_close(layer(x), expected, **EXACT)


class TestTheBranches:
    @pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, (1, 5)])
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
    def test_their_sum(self, kernel, stride, dilation):
        torch.manual_seed(0)
        layer = XVolution(3, 4, kernel, stride=stride, dilation=dilation, dtype=torch.float64)
        x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
        state = dict(layer.named_parameters())
        rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        maps = [
            F.conv2d(
                x,
                state["convolution.weight"],
                stride=stride,
                padding=(dilation * (rows // 2), dilation * (columns // 2)),
                dilation=dilation,
            ),
            F.conv2d(x, state["dilated.weight"], stride=stride, padding=4 * dilation, dilation=2 * dilation),
            layer.attention(x),
        ]
        normed = [(m - m.mean((0, 2, 3), True)) / (m.var((0, 2, 3), False, True) + 1e-5).sqrt() for m in maps]
        torch.testing.assert_close(layer(x), sum(normed), **EXACT)
        both = MultiConvolution(3, 4, kernel, stride=stride, dilation=dilation, dtype=torch.float64)
        both.load_state_dict({key: value for key, value in layer.state_dict().items() if "attention" not in key})
        torch.testing.assert_close(both(x), sum(normed[:2]), **EXACT)

    def test_the_paper_s_parameters(self):
        """Q, K and V are C x C: what stands in stage 5 of a ResNet-34 in place of a 3x3 convolution."""
        counted = sum(p.numel() for p in XVolution(512, 512, device="meta").parameters())
        assert counted == (9 + 25 + 3) * 512 * 512 + 24 * 512 + 3 * 2 * 512

    @pytest.mark.parametrize("kernel", [1, 3])
    def test_a_single_convolution(self, kernel):
        """Figure 1 and eq. 8: one convolution and one batch norm beside the attention."""
        torch.manual_seed(0)
        layer = XVolution(3, 4, kernel, stride=2, dilated_kernel_size=None, dtype=torch.float64)
        parts = {name.partition(".")[0] for name in layer.state_dict()}
        assert parts == {"convolution", "convolution_norm", "attention", "attention_norm"}
        x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
        maps = [F.conv2d(x, layer.convolution.weight, stride=2, padding=kernel // 2), layer.attention(x)]
        normed = [(m - m.mean((0, 2, 3), True)) / (m.var((0, 2, 3), False, True) + 1e-5).sqrt() for m in maps]
        torch.testing.assert_close(layer(x), sum(normed), **EXACT)
        alone = MultiConvolution(3, 4, kernel, stride=2, dilated_kernel_size=None, dtype=torch.float64)
        alone.load_state_dict({key: value for key, value in layer.state_dict().items() if "attention" not in key})
        torch.testing.assert_close(alone(x), normed[0], **EXACT)
        counted = sum(p.numel() for p in XVolution(8, 8, dilated_kernel_size=None, device="meta").parameters())
        assert counted == (9 + 3) * 64 + 24 * 8 + 2 * 2 * 8
        assert XVolution(4, 8, dilated_kernel_size=(3, 7)).dilated.kernel_size == (3, 7)

    def test_attention_that_is_given(self):
        module = GlobalAttention2d(4, 8, num_heads=2)
        assert XVolution(4, 8, attention=module).attention is module
        layer = XVolution(4, 8, stride=2, dilation=3, attention=partial(PSSA, num_heads=8), dtype=torch.float64)
        assert layer.attention.neighborhood.stride == (2, 2)
        assert (15, 15) in layer.attention.neighborhood.offsets
        assert layer.attention.weight.dtype == torch.float64
        assert XVolution(4, 8, num_heads="channels", reading="product", position="bias").attention.num_heads == 8
        assert XVolution(4, 8, attention="global").attention.attention.num_heads == 4


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 8, 3, padding=1),
    "without bias": nn.Conv2d(4, 8, 3, padding=1, bias=False),
    "strided": nn.Conv2d(4, 8, 3, 2, 1),
    "strides": nn.Conv2d(4, 8, 3, (1, 3), 1),
    "unpadded": nn.Conv2d(4, 8, 3),
    "valid": nn.Conv2d(4, 8, (3, 2), padding="valid"),
    "padded wide": nn.Conv2d(4, 8, 3, 2, padding=(3, 2)),
    "patches": nn.Conv2d(4, 8, 4, 4),
    "even": nn.Conv2d(4, 8, 2, padding=1),
    "same, asymmetric": nn.Conv2d(4, 8, (4, 2), padding="same", dilation=(1, 3)),
    "rectangular": nn.Conv2d(4, 8, (1, 7), padding=(0, 3)),
    "point, strided": nn.Conv2d(4, 8, 1, 2),
    "depthwise": nn.Conv2d(4, 4, 3, 2, 1, groups=4),
    "groups, dilated": nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
    "reflect": nn.Conv2d(4, 8, 5, padding=2, padding_mode="reflect"),
    "replicate": nn.Conv2d(4, 8, 3, 2, padding=(1, 0), padding_mode="replicate"),
    "circular, asymmetric": nn.Conv2d(4, 8, 4, padding="same", padding_mode="circular"),
    "tensorflow's": Conv2dSame(4, 8, 3, 2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
class TestAround:
    @pytest.mark.parametrize("attention", ["pssa", "global", "involution"])
    @pytest.mark.parametrize("size", [(7, 9), (10, 8)])
    def test_starts_as_the_convolution(self, name, attention, size):
        conv = copy.deepcopy(CONVOLUTIONS[name])
        layer = XVolution.around(conv, attention=attention)
        assert layer.convolution is conv
        x = torch.randn(2, 4, *size)
        for mode in (True, False):
            assert torch.equal(layer.train(mode)(x), conv(x))
        assert torch.equal(layer(x[0]), conv(x[0]))

    def test_float16_autocast_leaves_the_statistics_whole(self, name):
        """Three maps multiplied leave float16's range; a converted network would be NaN for good."""
        layer = XVolution.around(copy.deepcopy(CONVOLUTIONS[name])).train()
        x = 100 * torch.randn(2, 4, 7, 9)
        with torch.autocast("cpu", dtype=torch.float16), torch.no_grad():
            torch.testing.assert_close(layer(x), CONVOLUTIONS[name](x))
        assert layer.attention_norm.running_var.isfinite().all()

    @pytest.mark.parametrize("options", [{}, {"propagation": "summed", "lengths": (0, 1, 3)}], ids=str)
    def test_then_learns(self, name, options):
        layer = XVolution.around(copy.deepcopy(CONVOLUTIONS[name]), num_heads="channels", **options)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        x, before = torch.randn(2, 4, 7, 9), copy.deepcopy(layer.state_dict())
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        after = layer.state_dict()
        still = {key for key in before if torch.equal(before[key], after[key])}
        assert not still, still

    def test_reparameterized(self, name):
        layer = XVolution.around(copy.deepcopy(CONVOLUTIONS[name]).double()).eval()
        x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
        unchanged = copy.deepcopy(layer)
        unchanged.reparameterize()
        assert unchanged.reparameterized.attention is None
        assert torch.equal(unchanged(x), layer(x))
        for value in (*layer.attention_norm.parameters(), layer.attention_norm.running_mean):
            value.data.normal_()
        folded = copy.deepcopy(layer)
        folded.reparameterize()
        assert folded.reparameterized.form == "separate"
        torch.testing.assert_close(folded(x), layer(x), **EXACT)
        norm = nn.BatchNorm2d(layer.out_channels, dtype=torch.float64).eval()
        for value in (*norm.parameters(), norm.running_mean):
            value.data.normal_()
        for fast in (folded, unchanged):
            expected = norm(fast(x))
            fast.reparameterized.absorb(norm)
            torch.testing.assert_close(fast(x), expected, **EXACT)


@pytest.mark.parametrize("name", ["strided", "unpadded", "patches", "same, asymmetric", "replicate", "tensorflow's"])
def test_around_exports_with_free_sizes(name):
    layer = XVolution.around(copy.deepcopy(CONVOLUTIONS[name])).eval()
    nn.init.ones_(layer.attention_norm.weight)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(layer, (torch.randn(2, 4, 12, 10),), dynamic_shapes=(free,)).module()
    for shape in [(1, 4, 16, 14), (3, 4, 20, 18)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), layer(x))


def test_the_attention_looks_from_the_centres_of_the_windows():
    """A 3x3 convolution without padding: its first centre is pixel (1, 1)."""
    torch.manual_seed(0)
    layer = XVolution.around(nn.Conv2d(4, 4, 3, bias=False), attention=nn.Identity()).eval()
    nn.init.zeros_(layer.convolution.weight)
    nn.init.ones_(layer.attention_norm.weight)
    layer.attention_norm.eps = 0.0
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(layer(x), x[:, :, 1:-1, 1:-1])
    layer.convolution.padding = (2, 2)
    wide = XVolution.around(layer.convolution, attention=nn.Identity()).eval()
    nn.init.ones_(wide.attention_norm.weight)
    wide.attention_norm.eps = 0.0
    assert torch.equal(wide(x), F.pad(x, (1, 1, 1, 1)))


def test_around_keeps_device_dtype_and_mode():
    layer = XVolution.around(nn.Conv2d(4, 8, 3, device="meta", dtype=torch.float16).eval())
    assert not layer.training
    assert not layer.attention_norm.training
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: XVolution(4, 8, 4), ValueError, "kernel_size must be odd, got 4; 5 would do"),
        (lambda: MultiConvolution(4, 8, dilated_kernel_size=4), ValueError, "dilated_kernel_size must be odd, got 4"),
        (lambda: XVolution(0, 8), ValueError, "in_channels must be at least 1"),
        (lambda: XVolution(4, 0), ValueError, "out_channels must be at least 1"),
        (lambda: XVolution(4, 8, attention="local"), ValueError, "attention must be one of .*'pssa'.* got 'local'"),
        (lambda: XVolution(4, 8, attention=3), TypeError, "attention must be one of .* got 3"),
        (lambda: XVolution(4, 8, num_heads=3), ValueError, "divisible by num_heads, got 3"),
        (
            lambda: XVolution(4, 8, attention="global", position="linear"),
            ValueError,
            "attention='pssa' alone is told position='linear'",
        ),
        (lambda: XVolution(4, 8, attention="involution", num_heads=2), ValueError, "num_heads is of .* got 2"),
        (lambda: XVolution(4, 8)(torch.zeros(1, 5, 3, 3)), ValueError, r"must be \[B, 4, H, W\]"),
        (lambda: XVolution.around(nn.Linear(3, 4)), TypeError, "takes an nn.Conv2d, got Linear"),
        (lambda: XVolution.around(nn.LazyConv2d(4, 3)), ValueError, "in_channels must be at least 1"),
    ],
)
def test_misuse_is_named(act, error, message):
    with pytest.raises(error, match=message):
        act()


@torch.no_grad()
def test_an_attention_of_gain_zero_adds_nothing_even_where_it_overflows():
    """A network of huge activations, converted: what it computed before it still computes."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.full((1, 4, 5, 5), 1e30)
    layer = XVolution.around(conv).eval()
    assert not layer.attention(x).isfinite().all()
    assert torch.equal(layer(x), conv(x))
    layer.attention_norm.weight.fill_(1.0)
    assert not layer(x).isfinite().all()
