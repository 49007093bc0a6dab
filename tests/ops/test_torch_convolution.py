"""The forms that torch's convolution computes: right where torch alone is wrong, in any order of maps and kernels."""

import pytest
import torch

from convattn.ops import group_convolution, shift_aggregate


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(3, 1, 17), (3, 1, 1), (6, 2, 17), (10, 1, 1), (2, 5, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_eager_gradient_whatever_the_order_of_the_weights(dtype, inputs, outputs, groups, dilation):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (torch.randn(shape, generator=generator) * 0.3).to(dtype)

    x, weight = draw(2, inputs * groups, 7, 33), draw(inputs, 3, 3, outputs, groups)
    for order in ((0, 1, 2, 3, 4), (4, 1, 2, 3, 0), (3, 4, 0, 1, 2), (2, 1, 0, 4, 3)):
        back = [order.index(dim) for dim in range(5)]
        for laid in (torch.contiguous_format, torch.channels_last):
            leaves = [x.contiguous(memory_format=laid), weight.permute(order).contiguous().permute(back)]
            found = _gradients(leaves, dilation)
            expected = _gradients([t.double() for t in (x, weight)], dilation)
            for got, true in zip(found, expected, strict=True):
                assert (got.double() - true).abs().max() <= 32 * torch.finfo(dtype).eps * true.abs().max()


@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        ((24, 1), (9, 3), (11, 11), 1),
        ((9, 1), (3, 9), (5, 2), 1),
        ((9, 2), (9, 3), (1, 2), 1),
        ((2, 1), (9, 9), 1, (2, 1)),
        ((3, 1), (3, 3), (1, 2), 1),
    ],
    ids=str,
)
def test_bfloat16_maps_of_few_columns(size, kernel, stride, dilation, repeat):
    generator = torch.Generator().manual_seed(repeat)
    taps = kernel[0] * kernel[1]
    x = torch.randn(2, 18, *size, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(1, *kernel, 4, 18, generator=generator).bfloat16()
    y = torch.randn(2, taps, *size, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    steps = {"stride": stride, "dilation": dilation}
    calls = {
        "group": ([x, weight], lambda x, weight: group_convolution(x, weight, backend="eager", **steps)),
        "depthwise": ([y], lambda y: shift_aggregate(y, kernel, form="depthwise", **steps)),
        "grouped": ([y], lambda y: shift_aggregate(y, kernel, form="grouped", **steps)),
    }
    for name, (inputs, call) in calls.items():
        expected = _with_gradients(call, [t.double() for t in inputs])
        for order in ((0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1), (3, 1, 2, 0)):
            _spoil_fresh_memory()
            for got, true in zip(_with_gradients(call, inputs, order), expected, strict=True):
                assert (got.double() - true).abs().max() <= 0.05 * true.abs().max(), (name, order)


def test_a_bfloat16_kernel_over_a_single_column():
    """Torch alone finds a gradient of the weight that is 1e16 off, of maps in no odd order."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 25, 19, 1), (2, 25, 5, 5))]

    def call(x, weight):
        return shift_aggregate(x, 5, weight=weight, stride=(1, 2), form="grouped")

    _spoil_fresh_memory()
    expected = _with_gradients(call, [t.double() for t in inputs])
    for got, true in zip(_with_gradients(call, inputs), expected, strict=True):
        assert (got.double() - true).abs().max() <= 0.02 * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("size", "kernel", "groups", "stride", "dilation"),
    [
        ((1, 1), (9, 1), 4, (31, 1), (1, 49)),
        ((13, 2), (3, 1), 3, 1, 4),
        ((135, 1), (1, 9), 3, 1, 1),
        ((5, 6), 3, 2, 1, 3),
    ],
    ids=str,
)
def test_grouped_kernels_in_any_order(size, kernel, groups, stride, dilation, dtype):
    generator = torch.Generator().manual_seed(0)
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(1, groups * rows * columns, *size, generator=generator).to(dtype)
    weight = torch.randn(2 * groups, rows * columns, rows, columns, generator=generator).to(dtype)
    options = {"groups": groups, "stride": stride, "dilation": dilation, "form": "grouped"}

    def call(x, weight):
        return shift_aggregate(x, kernel, weight=weight, **options)

    expected = _with_gradients(call, [x.double(), weight.double()])
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 0, 2, 1), (1, 0, 2, 3)):
        back = [order.index(dim) for dim in range(4)]
        for laid in (torch.contiguous_format, torch.channels_last):
            _spoil_fresh_memory()
            found = _with_gradients(
                call, [x.contiguous(memory_format=laid), weight.permute(order).contiguous().permute(back)]
            )
            for got, true in zip(found, expected, strict=True):
                assert (got.double() - true).abs().max() <= 32 * torch.finfo(dtype).eps * true.abs().max()


def _spoil_fresh_memory():
    """What a kernel forgets to write is NaN."""
    spoiled = [torch.full((size,), float("nan")) for size in (10, 100, 1000, 5000, 10_000, 50_000)]
    del spoiled


def _with_gradients(call, inputs, order=(0, 1, 2, 3)):
    """Output and gradients; that which comes in lies in memory in an order of its dimensions."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    ones = out.new_ones([out.shape[dim] for dim in order]).permute([order.index(dim) for dim in range(4)])
    return [out.detach(), *torch.autograd.grad(out, leaves, ones)]


def _gradients(inputs, dilation):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = group_convolution(*leaves, dilation=dilation, backend="eager")
    return torch.autograd.grad(out, leaves, torch.ones((), dtype=out.dtype).expand(out.shape))
