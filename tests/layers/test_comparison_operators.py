"""The operators that the papers compare with: their definitions, and what is theirs alone."""

import pytest
import timm
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn

from convattn.layers._pooling import average_pool
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.timm_operators import BottleneckAttention2d, TimmOperator2d
from tests.layers import comparison_reference as reference

SIZES = [(1, 1), (2, 5), (9, 8)]
DOUBLE = {"dtype": torch.float64}


def drawn(layer):
    """A layer in evaluation, its batch norms with statistics of their own, and its state as leaves of the graph."""
    torch.manual_seed(1)
    for norm in (m for m in layer.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    state = dict(layer.named_buffers()) | dict(layer.named_parameters())
    return layer.eval(), state


def check_against(layer, compute, size):
    """Outputs and the gradients of the input and of every parameter, in float64."""
    layer, state = drawn(layer)
    x = torch.randn(2, layer.in_channels, *size, dtype=torch.float64, requires_grad=True)
    ours, expected = layer(x), compute(x, state)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    inputs = (x, *layer.parameters())
    got, wanted = (
        torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
        for out in (ours, expected)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("composability", ["squared_difference", "absolute_difference", "product"])
def test_local_relation(composability, stride, dilation, size):
    options = {"stride": stride, "dilation": dilation}
    layer = LocalRelation2d(6, 4, kernel_size=5, channels_per_group=2, composability=composability, **options, **DOUBLE)
    check_against(
        layer, lambda x, s: reference.local_relation(x, s, composability, groups=3, kernel=5, **options), size
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("out_channels", [6, 4])
def test_involution(out_channels, stride, dilation, size):
    options = {"stride": stride, "dilation": dilation}
    layer = Involution2d(6, out_channels, kernel_size=5, channels_per_group=2, **options, **DOUBLE)
    assert layer.groups == out_channels // 2
    check_against(layer, lambda x, s: reference.involution(x, s, groups=out_channels // 2, kernel=5, **options), size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{"feature_size": (3, 20)}, {"position": None, "dilation": 2}, {"value_ratio": 1.0, "key_ratio": 1.0}],
    ids=str,
)
def test_augmented_convolution(options, stride, size):
    layer = AugmentedConv2d(4, 12, num_heads=2, stride=stride, **options, **DOUBLE)
    assert (layer.convolution is None) == ("value_ratio" in options)
    dilation = options.get("dilation", 1)
    check_against(layer, lambda x, s: reference.augmented(x, s, layer, stride=stride, dilation=dilation), size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_attention(stride, size):
    layer = BottleneckAttention2d(4, 12, num_heads=2, stride=stride, feature_size=(3, 20), **DOUBLE)
    check_against(layer, lambda x, s: reference.bottleneck(x, s, heads=2, stride=stride), size)


@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_attention_is_timms_with_its_weights(stride):
    theirs = BottleneckAttn(16, 16, feat_size=(6, 8), stride=stride, scale_pos_embed=True).double()
    ours = BottleneckAttention2d(16, 16, feature_size=(6, 8), stride=stride, **DOUBLE)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 16, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_longer_tables_change_nothing_on_a_map_within_them():
    short = BottleneckAttention2d(8, 8, feature_size=5, **DOUBLE)
    long = BottleneckAttention2d(8, 8, feature_size=9, **DOUBLE)
    with torch.no_grad():
        long.qkv.weight.copy_(short.qkv.weight)
        for name in ("height_rel", "width_rel"):
            getattr(long.pos_embed, name)[4:13] = getattr(short.pos_embed, name)
    x = torch.randn(1, 8, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(long(x), short(x))


def test_groups_of_channels_that_do_not_come_out_even_are_smaller():
    assert [LocalRelation2d(c, 8).groups for c in (1, 64, 100)] == [1, 8, 25]
    assert [Involution2d(8, c).groups for c in (8, 24, 64)] == [1, 3, 4]


def test_value_and_key_channels_follow_the_ratios():
    """20 keys a head at least, both a multiple of the heads (section 4.2 of the source)."""
    sizes = [
        (layer.key_channels, layer.value_channels)
        for layer in (AugmentedConv2d(8, c, num_heads=8) for c in (8, 128, 512, 1024))
    ]
    assert sizes == [(160, 8), (160, 16), (160, 48), (208, 104)]


@pytest.mark.parametrize("stride", [1, 2])
def test_halo_on_whole_blocks_is_timms(stride):
    ours = TimmOperator2d(16, 16, kind="halo", block_size=4, halo_size=1, stride=stride)
    theirs = HaloAttn(16, 16, block_size=4, halo_size=1, stride=stride, avg_down=True)
    theirs.load_state_dict(ours.operator.state_dict())
    x = torch.randn(1, 16, 8, 12)
    torch.testing.assert_close(ours(x), theirs(x))


def test_filling_blocks_is_the_border_that_halo_attention_has():
    layer = TimmOperator2d(8, 8, kind="halo", block_size=4, halo_size=2)
    x = torch.randn(1, 8, 6, 5)
    larger = torch.zeros(1, 8, 12, 12)
    larger[..., :6, :5] = x
    torch.testing.assert_close(layer(x), layer(larger)[..., :6, :5])


@pytest.mark.parametrize("kind", ["halo", "lambda"])
@pytest.mark.parametrize("size", [(1, 1), (7, 10)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_timms_operators_take_any_size(kind, size, stride):
    layer = TimmOperator2d(8, 8, kind=kind, stride=stride).eval()
    x = torch.randn(2, 8, *size, requires_grad=True)
    y = layer(x)
    assert y.shape == torch.nn.Conv2d(8, 8, 3, stride, 1)(x).shape
    torch.testing.assert_close(layer(x[0]), y[0])
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (4, 5)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (7, 10), (8, 3)], ids=str)
def test_average_pool_is_torchs_up_to_the_last_pixel(stride, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool2d(x, stride, stride, ceil_mode=True)
    torch.testing.assert_close(average_pool(x, stride), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LocalRelation2d(8, 8, kernel_size=4), "kernel_size must be odd, got 4; 5 would do"),
        (lambda: LocalRelation2d(8, 8, composability="sum"), "composability must be one of .*product.*, got 'sum'"),
        (lambda: LocalRelation2d(8, 8, channels_per_group=0), "channels_per_group must be at least 1, got 0"),
        (lambda: Involution2d(0, 8), "in_channels must be at least 1, got 0"),
        (lambda: Involution2d(8, 8, reduction=0), "reduction must be at least 1, got 0"),
        (lambda: AugmentedConv2d(8, 4, num_heads=8), "num_heads must lie between 1 and out_channels=4, got 8"),
        (lambda: AugmentedConv2d(8, 8, value_ratio=1.5), "value_ratio must be above 0 and at most 1, got 1.5"),
        (lambda: AugmentedConv2d(8, 8, position="linear"), "position must be 'relative' or None, got 'linear'"),
        (lambda: BottleneckAttention2d(8, 10), r"out_channels=10 must be divisible by num_heads, got 4; \[1, 2, 5, 10"),
        (lambda: BottleneckAttention2d(8, 8, feature_size=0), "feature_size must be an integer >= 1"),
        (lambda: TimmOperator2d(8, 8, kind="window"), "kind must be one of .*, got 'window'"),
        (lambda: TimmOperator2d(8, 8, kind="halo", dilation=2), "timm's halo operator has no dilation, got 2"),
        (lambda: TimmOperator2d(8, 16, kind="lambda"), "timm's lambda layer keeps the channels, got 8 to 16"),
        (lambda: TimmOperator2d(8, 12, kind="halo"), "out_channels=12 must be divisible by num_heads, got 8"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("layer", [LocalRelation2d, Involution2d, AugmentedConv2d, BottleneckAttention2d])
def test_wrong_inputs_are_named(layer):
    with pytest.raises(ValueError, match=r"must be \[B, 8, H, W\] or \[8, H, W\], got \[1, 4, 5, 5\]"):
        layer(8, 8)(torch.zeros(1, 4, 5, 5))
    with pytest.raises(ValueError, match="at least one pixel, got H=0, W=5"):
        layer(8, 8)(torch.zeros(1, 8, 0, 5))


def test_timms_own_lambda_networks_stay_timms():
    assert timm.is_model("lambda_resnet26t")
    assert timm.models.model_entrypoint("lambda_resnet26t").__module__.startswith("timm.")
