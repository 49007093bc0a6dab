"""The choices of the portable forms: which groups are computed together, which maps are one tile, what is recorded."""

from __future__ import annotations

import math

import pytest
import torch

from convattn import ops
from convattn.ops import Neighborhood
from convattn.ops._portable import neighbours, softmax
from convattn.ops._recording import fixed_sizes
from convattn.ops.attend.portable import _log_meetings
from convattn.ops.group_convolution import reference
from convattn.ops.group_convolution.enlarged import enlarged_group_convolution


def attend_and_count(size: tuple[int, int], calls: list[str]) -> torch.Tensor:
    """Attention of a 7x7 window by portable operators; ``calls`` gets their names."""

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    q, k, v = torch.randn(3, 1, 8, *size, generator=torch.Generator().manual_seed(0)).double()
    with Names():
        return ops.attend(q, k, v, Neighborhood.window(7), num_heads=2, backend="portable")


@pytest.mark.parametrize(("size", "gathers"), [((7, 7), 0), ((14, 12), 0), ((40, 40), 8)])
def test_a_small_map_is_one_tile(size, gathers):
    """Of tiles, queries, keys and values are gathered, and the outputs; head by head."""
    calls = []
    attend_and_count(size, calls)
    assert calls.count("index_select") == gathers


@pytest.mark.parametrize("border", ["reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_window_meets_as_many_pixels_as_it_has_offsets(border, stride):
    nbhd = Neighborhood.window(7, stride=stride, border=border)
    for row in _log_meetings(nbhd, 5, 4):
        assert math.isclose(sum(map(math.exp, row)), 49)


@pytest.mark.parametrize(
    "shape", [(12, 3, 3, 4, 16), (12, 3, 5, 4, 8), (9, 3, 3, 3, 32), (12, 3, 3, 4, 6), (36, 3, 1, 12, 4)], ids=str
)
def test_groups_together_compute_what_each_does(shape):
    """Four groups of four outputs fill a vector; three outputs never do, nor do six groups; twelve are filled up."""
    maps, _, _, _, dim = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, maps * dim, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[3] * dim, generator=generator, dtype=torch.float64)
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        found = ops.group_convolution(x, weight, bias, stride=stride, dilation=dilation, backend="portable")
        expected = reference.group_convolution(x, weight, bias, stride, dilation)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 3, 1, 6), (6, 3, 5, 2, 4), (3, 1, 3, 4, 1), (4, 5, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("ratio", [1, 2, 3, 8])
def test_enlarged_maps_are_never_made_by_portable_operators(shape, ratio, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, shape[0] * shape[-1], 4, 3, generator=generator).to(dtype)
    weight = torch.randn(shape, generator=generator).to(dtype)
    large = x.double().repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
    expected = reference.group_convolution(large, weight.double(), None, 1, 1)
    rtol = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for backend in ("portable", "eager"):
        with ops.backend(backend):
            found = enlarged_group_convolution(x, weight, ratio)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@pytest.mark.parametrize("border", ["reflect", "zeros", "replicate"])
@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("offsets", [((0, 0),), ((-2, 1), (1, 1), (0, -3), (2, 0)), ((1, 2), (3, 2))], ids=str)
def test_neighbours_at_a_stride(offsets, stride, border):
    nbhd = Neighborhood(offsets, stride=stride, border=border)
    x = torch.arange(2 * 7 * 6.0).view(1, 2, 7, 6)
    expected = list(nbhd.views(nbhd.pad(x), 7, 6))
    assert all(map(torch.equal, neighbours(nbhd, x), expected))
    assert len(list(neighbours(nbhd, x))) == len(offsets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_softmax_step_by_step(dtype):
    x = (torch.randn(2, 3, 9, 4, dtype=torch.float64) * 30).to(dtype).requires_grad_()
    with ops.backend("portable"):
        found = softmax(x, 2)
    exact = x.double().softmax(2)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=8 * eps, atol=eps)
    weight = torch.randn_like(exact)
    got, true = (torch.autograd.grad(out, x, weight.to(out.dtype))[0] for out in (found, exact))
    torch.testing.assert_close(got.double(), true.double(), rtol=8 * eps, atol=8 * eps)


class Attention(torch.nn.Module):
    def forward(self, x):
        q, k, v = x.chunk(3, 1)
        return ops.attend(q, k, v, Neighborhood.window(3), num_heads=2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_of_one_size_computes_no_index():
    layer, x = Attention(), torch.randn(2, 24, 20, 24)
    of_any_size = torch.jit.trace(layer, x)
    with fixed_sizes():
        of_one_size = torch.jit.trace(layer, x)
    assert "aten::size" in str(of_any_size.inlined_graph)
    assert "aten::size" not in str(of_one_size.inlined_graph)
    more = torch.randn(3, 24, 20, 24)
    torch.testing.assert_close(of_one_size(more), layer(more))
