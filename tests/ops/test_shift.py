import pytest
import torch

from convattn.ops import one_hot_kernel, shift, shift_aggregate
from convattn.ops.shift import reference

SIZES = [(1, 1), (2, 3), (5, 4), (9, 8)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (-1, 2), (3, -3), (7, 0)], ids=str)
def test_shift_is_equation_4(size, offset):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.equal(shift(x, *offset), reference.shift(x, *offset))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 3)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("form", ["tensor", "depthwise", "grouped"])
def test_the_three_forms_are_one_function(size, kernel, stride, dilation, form):
    taps = len(one_hot_kernel(kernel))
    x = torch.randn(2, 3 * taps, *size, dtype=torch.float64)
    got = shift_aggregate(x, kernel, groups=3, stride=stride, dilation=dilation, form=form)
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, dilation)]
    expected = reference.shift_aggregate(x, None, pairs[0], 3, pairs[1], pairs[2])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_free_kernels_against_the_written_out_sum(stride, dilation):
    x = torch.randn(2, 2 * 9, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * 4, 9, 3, 3, dtype=torch.float64, requires_grad=True)
    got = shift_aggregate(x, 3, groups=2, stride=stride, dilation=dilation, form="grouped", weight=weight)
    expected = reference.shift_aggregate(x, weight, (3, 3), 2, (stride, stride), (dilation, dilation))
    torch.testing.assert_close(got, expected)
    ramp = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
    ours, theirs = (torch.autograd.grad(y, (x, weight), ramp) for y in (got, expected))
    torch.testing.assert_close(ours, theirs)


def test_one_hot_kernels_are_equation_15():
    kernels = one_hot_kernel(3)
    assert kernels.shape == (9, 3, 3)
    assert torch.equal(kernels.flatten(1), torch.eye(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["tensor", "depthwise", "grouped", "free"])
@pytest.mark.parametrize("stride", [1, 2])
def test_error_is_at_most_twice_that_of_plain_torch(dtype, form, stride):
    """In every dtype and layout, forward and backward, against the written-out sum in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 4 * 9, 7, 6).to(dtype)
    weight = torch.randn(8, 9, 3, 3).to(dtype) if form == "free" else None
    leaves = [t for t in (x, weight) if t is not None]

    def answer(run, tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        out = run(*tensors)
        ramp = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        return [t.double() for t in (out, *torch.autograd.grad(out, tensors, ramp))]

    def plain(x, weight=None):
        return reference.shift_aggregate(x, weight, (3, 3), 4, (stride, stride), (1, 1))

    def ours(x, weight=None):
        kind = "grouped" if form == "free" else form
        return shift_aggregate(x, 3, groups=4, stride=stride, form=kind, weight=weight)

    true = answer(plain, [t.double() for t in leaves])
    theirs = answer(plain, leaves)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = answer(ours, [t.contiguous(memory_format=layout) for t in leaves])
        for mine, torchs, exact in zip(got, theirs, true, strict=True):
            error, allowed = ((y - exact).norm() / exact.norm() for y in (mine, torchs))
            assert error <= 2 * max(allowed, torch.finfo(dtype).eps)
