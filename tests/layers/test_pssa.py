"""Pixel shift self-attention against its equation, pixel by pixel, and its inference form."""

import copy
from math import isclose

import pytest
import torch
from torch import nn

import convattn.cost  # noqa: F401  (teaches the counter our operators)
from convattn import ops
from convattn.layers.pssa import PSSA
from convattn.layers.pssa_forms import projection_multiply_adds
from tests.drawing import check_values_and_gradients, moved

EXACT = {"rtol": 1e-12, "atol": 1e-12}
STEPS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

pytestmark = pytest.mark.usefixtures("seeded")


def trained(*args, **options):
    return moved(PSSA(*args, **{"dtype": torch.float64} | options), 0.5)


def by_pixel(x, state, *, heads, reading="value", stride=1, dilation=1, lengths=(1, 3, 5)):
    """Section 3.3 with section 6.1.2's offsets: every pixel and every offset by itself."""
    steps = [(n * dy * dilation, n * dx * dilation) for n in lengths for dy, dx in (STEPS if n else [(0, 0)])]
    batch, _, height, width = x.shape
    maps = torch.einsum("oi,bihw->bohw", state["projection.weight"][..., 0, 0], x)
    channels = state["weight"].shape[1]
    q, k = maps[:, :channels], maps[:, channels : 2 * channels]
    head_dim = channels // heads
    rows = []
    for i in range(0, height, stride):
        for j in range(0, width, stride):
            total = x.new_zeros(batch, channels)
            for d, (dy, dx) in enumerate(steps):
                y, z = i + dy, j + dx
                inside = 0 <= y < height and 0 <= z < width
                if not inside and (reading == "value" or "position" not in state):
                    continue
                key = k[:, :, y, z] if inside else torch.zeros_like(k[:, :, 0, 0])
                similarity = (q[:, :, i, j] * key).unflatten(1, (heads, head_dim)).sum(2) / head_dim**0.5
                if "position" in state:
                    similarity = similarity + state["position"][:, d]
                term = state["weight"][d] * similarity.repeat_interleave(head_dim, 1)
                total = total + (term * maps[:, 2 * channels :, y, z] if reading == "value" else term)
            rows.append(total)
    return torch.stack(rows, 2).unflatten(2, (-(-height // stride), -(-width // stride)))


@pytest.mark.parametrize("reading", ["value", "product"])
@pytest.mark.parametrize("heads", [1, 4, "channels"])
@pytest.mark.parametrize("position", [None, "bias"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (2, 2)])
def test_the_equation_and_its_gradients(reading, heads, position, stride, dilation):
    layer = trained(3, 8, num_heads=heads, reading=reading, position=position, stride=stride, dilation=dilation)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    heads = 8 if heads == "channels" else heads
    expected = by_pixel(x, state, heads=heads, reading=reading, stride=stride, dilation=dilation)
    check_values_and_gradients(layer(x), expected, (x, *state.values()), **EXACT)


def summed_by_pixel(x, state, *, stride=1, dilation=1, lengths=(1, 3, 5), **options):
    """Eq. 7: the attention result of every pixel, then the sum over each pixel's neighbours and itself."""
    found = by_pixel(x, state, dilation=dilation, lengths=lengths, **options)
    height, width = found.shape[2:]
    region = sorted({(n * dy * dilation, n * dx * dilation) for n in lengths for dy, dx in STEPS} | {(0, 0)})
    rows = []
    for i in range(0, height, stride):
        for j in range(0, width, stride):
            inside = [
                (beta, i + dy, j + dx)
                for beta, (dy, dx) in zip(state["neighbor_sum.weight"], region, strict=True)
                if 0 <= i + dy < height and 0 <= j + dx < width
            ]
            rows.append(sum(beta * found[:, :, y, z] for beta, y, z in inside))
    return torch.stack(rows, 2).unflatten(2, (-(-height // stride), -(-width // stride)))


@pytest.mark.parametrize("reading", ["value", "product"])
@pytest.mark.parametrize("lengths", [(1, 3, 5), (0, 1, 3, 5), (0, 2)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
def test_the_sum_over_the_neighbours(reading, lengths, stride, dilation):
    options = {"reading": reading, "stride": stride, "dilation": dilation, "lengths": lengths}
    layer = trained(3, 4, num_heads=2, position="bias", propagation="summed", **options)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    expected = summed_by_pixel(x, state, heads=2, **options)
    check_values_and_gradients(layer(x), expected, (x, *state.values()), **EXACT)


def test_the_sum_starts_as_the_identity():
    layer = PSSA(4, 8, stride=2, propagation="summed")
    plain = PSSA(4, 8, stride=2)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "neighbor" not in name})
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(layer(x), plain(x))
    nn.init.normal_(layer.neighbor_sum.weight)
    assert not torch.allclose(layer(x), plain(x))
    layer.reset_parameters()
    assert layer.neighbor_sum.weight.sum() == 8


@pytest.mark.parametrize("offsets", [[(0, -1)], [(-2, 0), (3, 1)], [(0, 0)], [(1, 10**8), (-(10**8), 0)]], ids=str)
def test_the_sum_over_other_offsets(offsets):
    layer = trained(3, 4, propagation="summed", offsets=offsets)
    plain = PSSA(3, 4, offsets=offsets, dtype=torch.float64)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "neighbor" not in name})
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    found, expected = plain(x), torch.zeros(1, 4, 5, 4, dtype=torch.float64)
    for (dy, dx), beta in zip(sorted({*offsets, (0, 0)}), layer.neighbor_sum.weight, strict=True):
        expected += beta[:, None, None] * ops.shift(found, dy, dx)
    torch.testing.assert_close(layer(x), expected, **EXACT)


def test_gradcheck():
    layer = trained(2, 4, num_heads=2, position="bias", stride=2)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_the_paper_s_offsets():
    layer = PSSA(4, 4)
    assert set(layer.neighborhood.offsets) == {(n * dy, n * dx) for n in (1, 3, 5) for dy, dx in STEPS}
    assert layer.weight.shape == (24, 4)
    assert layer.projection.bias is None
    assert layer.num_heads == 1
    assert layer.neighbor_sum is None
    assert layer.position is None
    assert len(PSSA(4, 4, lengths=(2,)).neighborhood) == 8
    assert (0, 0) not in layer.neighborhood.offsets
    assert set(PSSA(4, 4, lengths=(0, 1, 3, 5)).neighborhood.offsets) == {*layer.neighborhood.offsets, (0, 0)}
    assert PSSA(4, 4, offsets=[(0, 1), (2, 0)], dilation=(3, 2)).neighborhood.offsets == ((0, 2), (6, 0))


def test_where_it_starts():
    layer = PSSA(64, 256, position="bias", num_heads=8)
    bound = 24**-0.5
    assert layer.weight.abs().max() <= bound
    assert isclose(layer.weight.std().item(), bound / 3**0.5, rel_tol=0.05)
    assert 0.01 < layer.position.std() < 0.03


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "tied"),
        ({"stride": 2}, "tied"),
        ({"num_heads": 4}, "joint"),
        ({"num_heads": "channels", "stride": 2}, "split"),
        ({"reading": "product"}, "tied"),
        ({"reading": "product", "num_heads": 2}, "joint"),
        ({"reading": "product", "num_heads": 2, "stride": (1, 3)}, "split"),
        ({"position": "bias", "offsets": [(0, 0), (3, -2)]}, "tied"),
        ({"lengths": (0, 1, 3, 5)}, "tied"),
        ({"propagation": "summed", "num_heads": 4, "stride": 2}, "joint"),
        ({"propagation": "summed", "stride": 2}, "tied"),
        ({"propagation": "summed", "reading": "product", "lengths": (0, 2), "position": "bias"}, "tied"),
    ],
    ids=str,
)
class TestReparameterize:
    def test_same_outputs_and_gradients(self, options, form):
        layer = trained(8, 8, **options)
        folded = copy.deepcopy(layer)
        folded.reparameterize()
        folded.reparameterize()
        assert folded.reparameterized.form == form
        assert f"form='{form}'" in repr(folded)
        for size in [(1, 1), (2, 3), (9, 6)]:
            x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
            torch.testing.assert_close(folded(x), layer(x), **EXACT)
            ours, expected = (torch.autograd.grad(m(x).square().sum(), x) for m in (folded, layer))
            torch.testing.assert_close(ours, expected, **EXACT)

    def test_takes_over_batch_norms(self, options, form):
        layer = trained(8, 8, **options)
        norms = [nn.BatchNorm2d(8, dtype=torch.float64).eval() for _ in range(2)]
        for norm in norms:
            for value in (norm.weight.data, norm.bias.data, norm.running_mean):
                value.normal_()
            norm.running_var.uniform_(0.2, 2)
        folded = copy.deepcopy(layer)
        folded.absorb(norms[0])
        folded.reparameterize()
        folded.absorb(norms[1])
        x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(folded(x), norms[1](norms[0](layer(x))), **EXACT)

    def test_counts_are_the_fewest(self, options, form):
        layer = PSSA(8, 8, **options)
        counted = projection_multiply_adds(layer)
        assert min(counted, key=counted.get) == form
        x = torch.zeros(1, 8, 6, 6)
        outputs = layer(x)[0, 0].numel()
        for now in ("joint", form):
            layer.reparameterized or now == "joint" or layer.reparameterize()
            with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
                layer.project(x)
            assert counter.get_total_flops() == 2 * counted[now] * outputs


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PSSA(0, 4), "in_channels must be at least 1"),
        (lambda: PSSA(4, 6, num_heads=4), "out_channels=6 must be divisible by num_heads, got 4"),
        (lambda: PSSA(4, 4, num_heads="all"), "num_heads must be an integer or 'channels', got 'all'"),
        (lambda: PSSA(4, 4, num_heads=True), "num_heads must be an integer"),
        (lambda: PSSA(4, 4, reading="values"), "reading must be one of .'value', 'product'., got 'values'"),
        (lambda: PSSA(4, 4, position="table"), "position must be 'bias' or None, got 'table'"),
        (lambda: PSSA(4, 4, lengths=(-1,)), "lengths must be"),
        (lambda: PSSA(4, 4, propagation="outer"), "propagation must be one of .'stacked', 'summed'., got 'outer'"),
        (lambda: PSSA(4, 4, offsets=[]), "at least one offset"),
        (lambda: PSSA(4, 4, stride=0), "stride must be an integer >= 1"),
        (lambda: PSSA(4, 4)(torch.zeros(1, 5, 3, 3)), r"must be \[B, 4, H, W\]"),
        (lambda: PSSA(4, 4).absorb(nn.BatchNorm2d(5)), "the batch norm has 5 channels, the operator 4"),
        (lambda: PSSA(4, 4, reading="product").value_weight(), "has no v"),
    ],
)
def test_misuse_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_projection_that_does_not_fold_is_named():
    layer = PSSA(4, 4)
    layer.projection = nn.Conv2d(4, 12, 1)
    with pytest.raises(TypeError, match="reparameterize folds a projection"):
        layer.reparameterize()
