"""Pairwise attention is the sum over pairs that SAN's section 3.1 writes, at any size, in any recording."""

import copy
import warnings

import pytest
import torch

from convattn.layers import PairwiseAttention, PairwiseAttention2d
from convattn.ops import Neighborhood
from tests.layers.folding_cases import drawn

pytestmark = pytest.mark.usefixtures("seeded")


def by_pair(path, q, k, v):
    """Every pixel and every neighbour by itself; gamma's batch norms in eval mode."""
    height, width = v.shape[2:]
    nbhd, heads = Neighborhood.window(path.kernel_size), path.channels // path.share
    place = torch.stack(
        torch.meshgrid(
            *(torch.linspace(-1, 1, size, dtype=v.dtype) if size > 1 else -v.new_ones(1) for size in (height, width)),
            indexing="ij",
        )[::-1]
    )
    place = torch.einsum("oc,chw->ohw", path.position.weight[..., 0, 0], place) + path.position.bias[:, None, None]
    rows = []
    for i in range(height):
        for j in range(width):
            logits, values = [], []
            for dy, dx in nbhd.offsets:
                y, x = nbhd.source(i + dy, height), nbhd.source(j + dx, width)
                where = (place[:, i, j] - place[:, y, x]).expand(len(v), -1)
                difference = torch.cat([q[:, :, i, j] - k[:, :, y, x], where], 1)
                logits.append(path.weights(difference[..., None, None])[..., 0, 0])
                values.append(v[:, :, y, x])
            weights = torch.stack(logits, 2).softmax(2)  # [B, heads, K²]
            by_channel = weights[:, torch.arange(path.channels) % heads]
            rows.append((by_channel * torch.stack(values, 2)).sum(2))
    return torch.stack(rows, 2).unflatten(2, (height, width))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)], ids=str)
@pytest.mark.parametrize(("channels", "share", "kernel"), [(8, 4, 3), (6, None, (1, 3)), (4, 1, 5)])
def test_the_equation_and_its_gradients(size, channels, share, kernel):
    path = drawn(PairwiseAttention(channels, kernel_size=kernel, share=share, dtype=torch.float64)).eval()
    q, k = torch.randn(2, 2, path.query_channels, *size, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    ours, expected = path(q, k, v), by_pair(path, q, k, v)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    ramp = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    inputs = (q, k, v, *path.parameters())
    found, wanted = (torch.autograd.grad(y, inputs, ramp, allow_unused=True) for y in (ours, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_projected_form_takes_what_a_convolution_takes():
    layer, x = drawn(PairwiseAttention2d(4, 16, kernel_size=3)).eval(), torch.randn(2, 4, 7, 9)
    expected = layer(x)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-4, atol=1e-5)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, 16, 7, 9)
    half = copy.deepcopy(layer).to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    meta = PairwiseAttention2d(4, 16, device="meta")
    assert meta(torch.empty(2, 4, 7, 9, device="meta")).shape == (2, 16, 7, 9)


def test_recorded_at_one_size_and_run_at_others():
    layer = drawn(PairwiseAttention2d(4, 16, kernel_size=3)).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    exported = torch.export.export(layer, (torch.randn(2, 4, 9, 12),), dynamic_shapes={"x": free}).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, torch.randn(2, 4, 9, 12))
    for shape in [(1, 4, 5, 6), (3, 4, 14, 3)]:
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PairwiseAttention(8, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: PairwiseAttention(8, share=3), "share must divide the 8 channels, got 3"),
        (lambda: PairwiseAttention(8)(*torch.zeros(3, 1, 8, 4, 4)), r"q and k must be \[B, 2, H, W\]"),
        (lambda: PairwiseAttention2d(4, 8)(torch.zeros(1, 5, 3, 3)), r"must be \[B, 4, H, W\]"),
    ],
)
def test_misuse_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
