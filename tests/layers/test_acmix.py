"""ACmix computes what the paper says, in every variant."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn import ACmix, LocalAttention2d, ShiftConv2d
from convattn.layers import PathMix, ShiftConvolution
from convattn.layers.path_mix import MixKind
from convattn.ops import Neighborhood, backend, one_hot_kernel
from convattn.ops.attend import reference as attend_reference
from tests.layers import reference


def random_state(layer):
    """Parameters away from their special starting values."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return layer


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 6), (12, 9)], ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(("kernel", "attention_kernel"), [(3, 7), (1, 3), (5, 5)])
def test_equals_the_authors_formulas(size, stride, dilation, kernel, attention_kernel):
    torch.manual_seed(0)
    options = {"stride": stride, "dilation": dilation}
    layer = ACmix(
        6, 8, kernel_size=kernel, attention_kernel_size=attention_kernel, num_heads=4, dtype=torch.float64, **options
    )
    random_state(layer)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    expected = reference.acmix(x, state, heads=4, kernel=kernel, attention_kernel=attention_kernel, **options)
    got = layer(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    ramp = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
    leaves = [x, *state.values()]
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, ramp) for y in (got, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mix", get_args(MixKind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_mix_in_the_networks_dtype(mix, dtype):
    torch.manual_seed(0)
    layer = random_state(ACmix(8, 8, mix=mix)).to(dtype)
    x = torch.randn(1, 8, 6, 5).to(dtype)
    with backend("eager"):
        expected = layer(x)
    got = layer(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, **({} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}))
    got.float().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_gradcheck():
    layer = random_state(ACmix(2, 4, num_heads=2, attention_kernel_size=3, stride=2, dtype=torch.float64))
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_table_position_is_stand_alone_self_attention():
    layer = random_state(LocalAttention2d(4, 6, kernel_size=3, num_heads=2, dtype=torch.float64))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    q, k, v = layer.projection(x).chunk(3, 1)
    row, column = layer.attention.position.row, layer.attention.position.column
    vectors = torch.stack([torch.cat([row[:, m // 3], column[:, m % 3]], -1) for m in range(9)], 1)
    expected = attend_reference.attend(q, k, v, None, vectors, Neighborhood.window(3), 2, 3**-0.5)
    torch.testing.assert_close(layer(x), expected)


def test_table_position_does_not_depend_on_the_size_of_the_map_and_linear_does():
    """A pixel far from the border sees the same window in a larger map; coordinates over the map change with it."""
    torch.manual_seed(0)
    small, large = torch.randn(1, 4, 9, 9, dtype=torch.float64), torch.randn(1, 4, 15, 15, dtype=torch.float64)
    large[..., 3:12, 3:12] = small
    gap = {}
    for position in ("table", "linear"):
        layer = random_state(ACmix(4, 4, num_heads=2, position=position, dtype=torch.float64))
        gap[position] = (layer(small)[..., 4, 4] - layer(large)[..., 7, 7]).abs().max().item()
    assert gap["table"] < 1e-12
    assert gap["linear"] > 1e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shift_forms_start_as_one_function(stride):
    torch.manual_seed(0)
    learnable = ACmix(6, 8, stride=stride, shift="learnable", dtype=torch.float64)
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    for shift in ("tensor", "fixed"):
        other = ACmix(6, 8, stride=stride, shift=shift, dtype=torch.float64)
        state = {name: value for name, value in learnable.state_dict().items() if name != "convolution.kernel"}
        other.load_state_dict(state)
        torch.testing.assert_close(other(x), learnable(x))
    single = ACmix(6, 8, stride=stride, shift="single", dtype=torch.float64)
    single.load_state_dict(learnable.state_dict() | {"convolution.kernel": single.convolution.kernel.data})
    torch.testing.assert_close(single(x), learnable(x))
    random = ACmix(6, 8, shift="random", dtype=torch.float64)
    assert not torch.equal(random.convolution.kernel, learnable.convolution.kernel)
    assert torch.equal(learnable.convolution.kernel, one_hot_kernel(3, dtype=torch.float64).expand(8, 9, 3, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_one_free_kernel_for_every_head_channel(bias):
    """Figure 3c II: one convolution group a head channel, whose N outputs are one sum (table 7's row without init)."""
    torch.manual_seed(0)
    path = ShiftConvolution(6, num_heads=2, stride=2, bias=bias, shift="single-random", dtype=torch.float64)
    assert path.kernel.shape == (3, 9, 3, 3)
    assert not torch.equal(path.kernel, one_hot_kernel(3, dtype=torch.float64).expand(3, 9, 3, 3))
    qkv = torch.randn(3, 1, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    heads = qkv.transpose(0, 1).unflatten(2, (2, 3)).flatten(1, 2)  # [B, 3N, d, H, W]
    maps = torch.einsum("mt,btdhw->bdmhw", path.fc, heads)
    if bias:
        maps = maps + path.fc_bias[:, None, None]
    expected = [F.conv2d(maps[:, d], path.kernel[d : d + 1], stride=2, padding=1) for d in range(3)]
    expected = torch.cat(expected, 1).repeat_interleave(2, 1)
    ours, inputs = path(*qkv), (qkv, *path.parameters())
    torch.testing.assert_close(ours, expected)
    ramp = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    found, wanted = (torch.autograd.grad(y, inputs, ramp, retain_graph=True) for y in (ours, expected))
    torch.testing.assert_close(found, wanted)


def test_convolution_path_channel_order_is_the_authors():
    """Output ``d * N + n`` reads head channel d alone."""
    path = ShiftConvolution(6, num_heads=2, dtype=torch.float64)
    q = torch.zeros(1, 6, 3, 3, dtype=torch.float64)
    q[:, 1 * 3 + 2] = 1.0
    out = path(q, q, q)
    assert out[:, 2 * 2 :].abs().sum() > 0
    assert not out[:, : 2 * 2].any()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("free", 0.7 * 2 + 0.2 * 3), ("alpha", 0.7 * 2 + 3), ("convex", 0.7 * 2 + 0.3 * 3), ("sum", 2 + 3)],
)
def test_mix_is_table_6(kind, expected):
    mix = PathMix(kind, dtype=torch.float64)
    with torch.no_grad():
        for rate, value in ((mix.alpha, 0.7), (mix.beta, 0.2)):
            if rate is not None:
                rate.fill_(value)
    two, three = torch.full((1,), 2.0, dtype=torch.float64), torch.full((1,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(mix(two, three), torch.tensor([expected], dtype=torch.float64))
    alpha, beta = mix.rates()
    torch.testing.assert_close(alpha * two + beta * three, mix(two, three), check_dtype=False)


def test_rates_are_exempt_from_weight_decay():
    import timm.optim

    from convattn import no_weight_decay

    net = nn.Sequential(nn.Conv2d(3, 8, 3), ACmix(8, 8), ACmix(8, 8, mix="convex"))
    assert no_weight_decay(net) == {"1.mix.alpha", "1.mix.beta", "2.mix.alpha"}
    groups = timm.optim.param_groups_weight_decay(net, 0.1, no_weight_decay_list=no_weight_decay(net))
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(net[1].mix.alpha), id(net[1].mix.beta), id(net[2].mix.alpha)} <= free


@pytest.mark.parametrize("form", ["tensor", "depthwise", "grouped"])
@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 3)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_shift_convolution_is_the_convolution(form, kernel, stride, dilation):
    pair = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = tuple(dilation * (k // 2) for k in pair)
    conv = nn.Conv2d(3, 5, kernel, stride, padding, dilation, dtype=torch.float64)
    ours = ShiftConv2d(3, 5, kernel, stride=stride, dilation=dilation, form=form, dtype=torch.float64)
    ours.load_state_dict(conv.state_dict())
    for size in [(1, 1), (4, 5), (9, 8)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(ours(x), conv(x))


def test_another_attention_path_is_passed_in():
    class Twice(nn.Module):
        def forward(self, q, k, v):
            return 2 * q + v

    layer = ACmix(4, 8, attention=Twice())
    x = torch.randn(1, 4, 5, 5)
    q, k, v = layer.projection(x).chunk(3, 1)
    torch.testing.assert_close(layer(x), 0.5 * (2 * q + v) + 0.5 * layer.convolution(q, k, v))


def test_generic_reinitialisation_leaves_the_shift():
    """What torchvision and the authors' ResNet do to every convolution must not undo table 7's +0.4."""
    net = nn.Sequential(ACmix(8, 8))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    assert torch.equal(net[0].convolution.kernel.detach(), one_hot_kernel(3).expand(8, 9, 3, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ACmix(64, 64, num_heads=5), r"out_channels=64 must be divisible by num_heads, got 5; \[1, 2, 4, 8"),
        (lambda: ACmix(64, 64, kernel_size=4), "kernel_size must be odd, got 4; 5 would do"),
        (lambda: ACmix(0, 64), "in_channels must be at least 1, got 0"),
        (lambda: ACmix(8, 8, stride=0), "stride must be an integer >= 1"),
        (
            lambda: ACmix(8, 8, shift="roll"),
            "shift must be one of 'learnable', 'random', 'single', 'single-random', 'fixed', 'tensor'",
        ),
        (lambda: ACmix(8, 8, mix="mean"), "mix must be one of 'free', 'alpha', 'convex', 'sum', got 'mean'"),
        (lambda: ACmix(8, 8, position="sine"), "position must be 'linear', 'table' or None, got 'sine'"),
        (lambda: ACmix(8, 8)(torch.zeros(1, 7, 4, 4)), r"\[B, 8, H, W\] or \[8, H, W\], got \[1, 7, 4, 4\]"),
        (lambda: ACmix(8, 8)(torch.zeros(1, 8, 0, 4)), "at least one pixel, got H=0, W=4"),
        (lambda: LocalAttention2d(8, 9, num_heads=4), "out_channels=9 must be divisible"),
        (lambda: ShiftConv2d(8, 9, 2), "kernel_size must be odd"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class TestConvolutionPath:
    def test_smaller_keys_and_values_count_as_their_nearest_enlargement(self):
        path = ShiftConvolution(8, num_heads=2, bias=True, dtype=torch.float64)
        q = torch.randn(2, 8, 7, 9, dtype=torch.float64)
        k, v = torch.randn(2, 2, 8, 3, 4, dtype=torch.float64)
        enlarged = (torch.nn.functional.interpolate(x, size=q.shape[-2:], mode="nearest") for x in (k, v))
        torch.testing.assert_close(path(q, k, v), path(q, *enlarged), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("shift", ["learnable", "fixed", "tensor"])
    def test_the_bias_ends_at_the_border(self, shift):
        path = ShiftConvolution(8, num_heads=2, bias=True, shift=shift, dtype=torch.float64)
        zeros = torch.zeros(1, 8, 4, 5, dtype=torch.float64)
        ones = torch.ones(1, 1, 4, 5, dtype=torch.float64)
        expected = torch.nn.functional.conv2d(ones, path.folded_bias(), padding=1)
        torch.testing.assert_close(path(zeros, zeros, zeros), expected, rtol=1e-12, atol=1e-12)
        assert (expected[..., 0, 0] != expected[..., 1, 1]).all()

    def test_queries_that_do_not_divide_into_maps(self):
        attention = torch.nn.Identity()
        attention.query_channels = 3
        with pytest.raises(ValueError, match="multiple of the 2 channels of a head, got 3"):
            ACmix(8, 8, attention=attention)

    def test_no_maps(self):
        with pytest.raises(ValueError, match="maps must be at least 1, got 0"):
            ShiftConvolution(8, maps=0)
