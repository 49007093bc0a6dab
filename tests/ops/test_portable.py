"""The choices of the portable forms: which groups are computed together, which maps are one tile, what is recorded."""

from __future__ import annotations

import math

import pytest
import torch

from convattn import ops
from convattn.ops import Neighborhood
from convattn.ops._recording import fixed_sizes
from convattn.ops.attend.portable import _log_meetings
from convattn.ops.group_convolution import reference


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


@pytest.mark.parametrize("shape", [(12, 3, 3, 4, 16), (12, 3, 5, 4, 8), (9, 3, 3, 3, 32), (12, 3, 3, 4, 6)], ids=str)
def test_groups_together_compute_what_each_does(shape):
    """Four groups of four outputs fill a vector; three outputs never do, nor do six groups."""
    maps, _, _, _, dim = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, maps * dim, 6, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        found = ops.group_convolution(x, weight, stride=stride, dilation=dilation, backend="portable")
        expected = reference.group_convolution(x, weight, None, stride, dilation)
        torch.testing.assert_close(found, expected)


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
