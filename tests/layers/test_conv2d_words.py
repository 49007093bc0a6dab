"""An operator is made with the words of ``nn.Conv2d``, and has its attributes."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from convattn import ACmix, LocalAttention2d, XVolution
from convattn.layers import GlobalAttention2d, MultiConvolution

WORDS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
OPERATORS = pytest.mark.parametrize("operator", [ACmix, MultiConvolution, XVolution])


@OPERATORS
@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((8, 12, 3, 1, 1), {}),
        ((8, 12, 5, 2, 2, 1, 1, True, "zeros"), {}),
        ((8, 12), {"kernel_size": (3, 5), "stride": (2, 1), "dilation": 2, "padding": (2, 4), "dtype": torch.float64}),
        ((8, 12, 3), {"padding": 1, "groups": 1, "padding_mode": "zeros", "device": "meta"}),
    ],
    ids=["positions", "all positions", "pairs", "names"],
)
def test_the_line_of_a_convolution_makes_the_operator(operator, args, options):
    conv, layer = nn.Conv2d(*args, **options), operator(*args, **options)
    assert [getattr(layer, word) for word in WORDS] == [getattr(conv, word) for word in WORDS]
    like = next(layer.parameters())
    assert (like.dtype, like.device) == (conv.weight.dtype, conv.weight.device)
    x = torch.zeros(2, 8, 11, 9, dtype=like.dtype, device=like.device)
    assert layer(x).shape == conv(x).shape


@OPERATORS
@pytest.mark.parametrize("padding", ["same", None])
def test_padding_may_be_left_to_the_operator(operator, padding):
    assert operator(4, 4, 5, dilation=2, padding=padding).padding == (4, 4)


@OPERATORS
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"padding": 0}, "padding must be (1, 1), which keeps the size of the map, got 0: leave it out"),
        ({"padding": "valid"}, "padding must be (1, 1), which keeps the size of the map, got 'valid': leave it out"),
        ({"padding": 1, "dilation": 2}, "padding must be (2, 2)"),
        ({"groups": 4}, "groups must be 1, since every output reads all inputs, got 4: leave it out, or take XVolut"),
        ({"padding_mode": "reflect"}, "padding_mode must be 'zeros', got 'reflect': leave it out, or take XVolution"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4; 5 would do"),
    ],
    ids=str,
)
def test_what_an_operator_cannot_be_told_is_answered(operator, words, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        operator(8, 8, **words)
    assert "\n" not in str(raised.value)


def test_what_the_messages_advise_works():
    conv, x = nn.Conv2d(8, 8, 3, padding=0, groups=4, padding_mode="reflect"), torch.randn(1, 8, 7, 7)
    layer = XVolution.around(conv)
    assert [getattr(layer, word) for word in WORDS] == [getattr(conv, word) for word in WORDS]
    assert torch.equal(layer(x), conv(x))
    assert layer.bias is conv.bias


def test_a_batch_norm_adds_a_constant_in_any_case():
    with pytest.raises(ValueError, match="leave bias out"):
        XVolution(8, 8, bias=False)
    assert XVolution(8, 8).bias is None


@pytest.mark.parametrize("form", ["auto", "grouped", "dense", "unfused"])
def test_an_acmix_without_a_bias_adds_no_constant(form):
    layer, x = ACmix(8, 12, bias=False, dtype=torch.float64), torch.randn(1, 8, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    expected = layer(x)
    assert not layer(torch.zeros_like(x)).any()
    assert layer.bias is None
    layer.reparameterize(form)
    torch.testing.assert_close(layer(x), expected)
    assert layer.bias is None


def test_the_bias_of_an_acmix_is_its_projections():
    layer = ACmix(8, 12)
    assert layer.bias is layer.projection.bias
    layer.reparameterize()
    assert layer.bias.shape == (36,)


@pytest.mark.parametrize(
    "operator", [ACmix, LocalAttention2d, GlobalAttention2d, partial(XVolution, attention="global")], ids=str
)
@pytest.mark.parametrize(("channels", "heads"), [(64, 4), (66, 3), (7, 1), (90, 3)])
def test_the_default_heads_divide_any_channels(operator, channels, heads):
    layer = operator(8, channels)
    assert layer(torch.randn(1, 8, 5, 5)).shape == (1, channels, 5, 5)
    assert f"num_heads={heads}" in repr(layer)
    with pytest.raises(ValueError, match="must be divisible by num_heads, got 5"):
        operator(8, channels + 1 - channels % 5, num_heads=5)
