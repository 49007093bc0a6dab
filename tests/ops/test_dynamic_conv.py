"""Eq. 9 of X-volution: what a static kernel and one of every pixel come to, over explicit offsets."""

import pytest
import torch
import torch.nn.functional as F

from convattn.ops import Neighborhood, aggregate, correlate, dynamic_conv, pixel_shift_attention
from convattn.ops.dynamic_conv import spread_taps, taps

CHANNELS = 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def supports(stride=1):
    """X-volution's convolutions together, then with the pixel shifts."""
    small, wide = (Neighborhood.window(k, dilation=d, stride=stride, border="zeros") for k, d in ((3, 1), (5, 2)))
    return small | wide, small | wide | Neighborhood.directions(stride=stride)


def test_supports_are_33_of_81_and_49_of_121_taps():
    for nbhd, extent, count in zip(supports(), (9, 11), (33, 49), strict=True):
        reach = nbhd.reach(0)
        assert (len(nbhd), sum(reach) + 1) == (count, extent)
        assert reach == nbhd.reach(1)
        assert list(nbhd.offsets) == sorted(nbhd.offsets)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 7), (2, 1)])
def test_static_kernels_are_the_convolutions_that_they_come_from(size, stride):
    x, small, wide = normal(2, CHANNELS, *size), normal(6, CHANNELS, 3, 3, seed=1), normal(6, CHANNELS, 5, 5, seed=2)
    nbhd = supports(stride)[0]
    merged = taps(small, nbhd) + taps(wide, nbhd, dilation=2)
    expected = F.conv2d(x, small, None, stride, 1) + F.conv2d(x, wide, None, stride, 4, 2)
    torch.testing.assert_close(dynamic_conv(x, merged, nbhd), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
def test_groups_are_those_of_a_convolution(groups):
    x, weight = normal(2, CHANNELS, 6, 5), normal(8, CHANNELS // groups, 3, 3, seed=1)
    nbhd = Neighborhood.window(3, border="zeros")
    expected = F.conv2d(x, weight, None, 1, 1, groups=groups)
    by_group = weight.flatten(2)[None, ..., None, None]
    torch.testing.assert_close(dynamic_conv(x, by_group, nbhd, groups=groups), expected)
    torch.testing.assert_close(dynamic_conv(x, taps(weight, nbhd, groups=groups), nbhd), expected)


def test_a_kernel_for_every_channel_and_pixel_is_aggregate():
    nbhd = Neighborhood.window(3)
    x, weights = normal(2, CHANNELS, 6, 5), normal(2, CHANNELS, 9, 6, 5, seed=1)
    got = dynamic_conv(x, weights[:, :, None], nbhd, groups=CHANNELS)
    torch.testing.assert_close(got, aggregate(weights, x, nbhd))


@pytest.mark.parametrize("heads", [1, 2, CHANNELS])
@pytest.mark.parametrize("stride", [1, 2])
def test_eq_9_convolutions_and_pixel_shift_attention_are_one_dynamic_kernel(stride, heads):
    static, nbhd = supports(stride)
    shifts = Neighborhood.directions(stride=stride)
    x, w3, w5 = normal(2, CHANNELS, 7, 6), normal(CHANNELS, CHANNELS, 3, 3, seed=1), normal(CHANNELS, CHANNELS, 5, 5)
    wq, wk, wv = normal(3, CHANNELS, CHANNELS, 1, 1, seed=2)
    weight = normal(24, CHANNELS, seed=3)
    q, k, v = nbhd.centres(F.conv2d(x, wq)), F.conv2d(x, wk), F.conv2d(x, wv)
    branches = F.conv2d(x, w3, None, stride, 1) + F.conv2d(x, w5, None, stride, 4, 2)
    branches = branches + pixel_shift_attention(q, k, v, weight, shifts, num_heads=heads)

    similarity = correlate(q, k, shifts, num_heads=heads).repeat_interleave(CHANNELS // heads, 1)
    coefficient = similarity * (CHANNELS // heads) ** -0.5 * weight.t()[..., None, None]
    dynamic = coefficient[:, :, None] * wv[..., None]
    kernel = spread_taps(taps(w3, static) + taps(w5, static, dilation=2), static, nbhd)
    kernel = kernel + spread_taps(dynamic, shifts, nbhd)
    assert kernel.shape[1:4] == (CHANNELS, CHANNELS, 49)
    torch.testing.assert_close(dynamic_conv(x, kernel, nbhd), branches, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_static_kernel():
    nbhd = supports()[1]
    x, weight = normal(1, 2, 3, 2).requires_grad_(), normal(2, 1, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: dynamic_conv(x, taps(w, nbhd, groups=2), nbhd), (x, weight))


@pytest.mark.parametrize("border", ["zeros", "reflect"])
def test_exported_for_any_size(border):
    class Involution(torch.nn.Module):
        def forward(self, x):
            nbhd = Neighborhood.window(3, stride=2, border=border)
            kernel = nbhd.centres(x)[:, :, None, None].expand(-1, -1, 1, 9, -1, -1)
            return dynamic_conv(x, kernel, nbhd, groups=CHANNELS)

    auto = torch.export.Dim.DYNAMIC
    x = normal(2, CHANNELS, 8, 7)
    program = torch.export.export(Involution(), (x,), dynamic_shapes={"x": {0: auto, 2: auto, 3: auto}})
    for shape in [(1, CHANNELS, 9, 5), (3, CHANNELS, 4, 6)]:
        x = normal(*shape)
        torch.testing.assert_close(program.module()(x), Involution()(x))


KERNEL, WINDOW = torch.zeros(1, 6, 4, 9, 1, 1), Neighborhood.window(3)
MAP = torch.zeros(2, 4, 5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dynamic_conv(MAP, KERNEL[0], WINDOW), r"kernel must be \[2, C_out, 4, 9, 5, 4\], or 1 in place"),
        (lambda: dynamic_conv(MAP, KERNEL[:, :, :2], WINDOW), r"kernel must be .* got \[1, 6, 2, 9, 1, 1\]"),
        (lambda: dynamic_conv(MAP, KERNEL.expand(3, -1, -1, -1, -1, -1), WINDOW), "kernel must be"),
        (lambda: dynamic_conv(MAP, KERNEL.double(), WINDOW), "x and kernel must have one dtype"),
        (lambda: dynamic_conv(MAP, KERNEL, WINDOW, groups=3), "groups must divide the 4 channels of x, got 3"),
        (lambda: dynamic_conv(MAP, KERNEL[:, :, :1], WINDOW, groups=4), "groups must divide the 6 outputs of kernel"),
        (lambda: taps(torch.zeros(4, 4, 5, 5), WINDOW), r"lacks the offsets \[\(-2, -2\), .*; join both with |"),
        (lambda: taps(torch.zeros(4, 4, 3), WINDOW), r"weight must be \[C_out, C_in / groups, kh, kw\]"),
        (lambda: spread_taps(KERNEL, Neighborhood.window(5), WINDOW), r"kernel must be \[..., 25, Ho, Wo\]"),
        (lambda: WINDOW | Neighborhood.directions(), "must have one stride and border"),
        (lambda: Neighborhood.directions((1, -1)), r"lengths must be one or more integers >= 0, got \(1, -1\)"),
        (lambda: Neighborhood.directions((0, 1, 0)), r"every offset once, got \(0, 0\) several times"),
    ],
)
def test_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()
