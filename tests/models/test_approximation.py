"""The kernel that an ACmix starts with is the best that its convolution path can hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convattn.convert.adjusted import AdjustedOperator
from convattn.convert.grouping import similar_outputs
from convattn.convert.targets import ToACmix
from convattn.layers import ACmix
from convattn.models.approximation import path_rank, write_convolution


def kernel_of(layer: ACmix) -> Tensor:
    """The convolution that the convolution path is, ``[C, C_in, kh, kw]``, from the layer's own fold."""
    path = layer.convolution
    projection = layer.projection.weight.flatten(1).unflatten(0, (path.maps, path.head_dim))
    return torch.einsum("tyxog,tgi->goiyx", path.folded_weight(), projection).flatten(0, 1).detach()


def dense(conv: nn.Conv2d) -> Tensor:
    """The kernel as one of a single group, read off the convolution's response to impulses."""
    rows, columns = (d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    impulse = torch.zeros(conv.in_channels, conv.in_channels, rows, columns, dtype=conv.weight.dtype)
    impulse[range(conv.in_channels), range(conv.in_channels), rows // 2, columns // 2] = 1
    response = nn.functional.conv2d(impulse, conv.weight, None, 1, conv.padding, conv.dilation, conv.groups).flip(
        -1, -2
    )
    return response[:, :, :: conv.dilation[0], :: conv.dilation[1]].transpose(0, 1).detach()


CASES = [
    # C_in, C, kernel, stride, dilation, groups, heads
    (24, 16, 3, 1, 1, 1, 1),
    (24, 16, 3, 2, 1, 1, 2),
    (24, 16, 3, 1, 2, 1, 4),
    (24, 16, 3, 1, 1, 1, 16),
    (7, 12, 3, 1, 1, 1, 4),
    (24, 24, 3, 1, 1, 3, 4),
    (24, 24, 5, 2, 1, 24, 8),
    (20, 20, (1, 5), 1, 1, 5, 10),
    (30, 20, 3, 1, 1, 5, 10),
    (30, 20, 3, 1, 1, 2, 4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestTheKernel:
    def layers(self, case: tuple) -> tuple[nn.Conv2d, ACmix]:
        torch.manual_seed(0)
        inputs, outputs, size, stride, dilation, groups, heads = case
        kernel = size if isinstance(size, tuple) else (size, size)
        padding = tuple(dilation * (k // 2) for k in kernel)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False, dtype=torch.float64)
        layer = ACmix(
            inputs, outputs, kernel_size=kernel, num_heads=heads, stride=stride, dilation=dilation, dtype=torch.float64
        )
        return conv, layer

    def test_it_is_what_the_truncated_decomposition_gives(self, case: tuple) -> None:
        conv, layer = self.layers(case)
        error, heads = write_convolution(layer, conv), case[-1]
        full, got = dense(conv), kernel_of(layer)
        best = 0.0
        for part in full.unflatten(0, (-1, heads)):
            values = torch.linalg.svdvals(part.transpose(0, 1).flatten(1))
            best += float(values[path_rank(layer.convolution.kernel_size, heads) :].square().sum())
        relative = float((got - full).norm() / full.norm())
        assert relative == pytest.approx((best**0.5) / float(full.norm()), abs=1e-9)
        assert error == pytest.approx(relative, abs=1e-7)

    def test_the_layer_computes_that_convolution(self, case: tuple) -> None:
        conv, layer = self.layers(case)
        write_convolution(layer, conv)
        x = torch.randn(2, case[0], 9, 8, dtype=torch.float64)
        padding, stride, dilation = conv.padding, conv.stride, conv.dilation
        expected = nn.functional.conv2d(x, kernel_of(layer), None, stride, padding, dilation)
        torch.testing.assert_close(layer(x), expected)

    def test_everything_can_learn(self, case: tuple) -> None:
        conv, layer = self.layers(case)
        write_convolution(layer, conv)
        x = torch.randn(2, case[0], 9, 8, dtype=torch.float64)
        out = layer(x)
        (out * torch.randn_like(out)).sum().backward()
        for name in ("mix.alpha", "mix.beta", "convolution.fc", "convolution.kernel", "projection.weight"):
            gradient = layer.get_parameter(name).grad
            assert gradient is not None
            assert gradient.abs().max() > 0
        rows = layer.convolution.kernel.grad.flatten(2).norm(dim=2)
        assert (rows > 0).all()  # no map of a head channel is dead


def test_similar_outputs_lose_less_where_there_are_such() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight[4:] = conv.weight[:4] * 1.5  # output c and c + 4 read alike
    errors = {grouping: ToACmix(2, grouping).build(conv) for grouping in ("order", "similar")}
    assert errors["similar"].relative_error < 0.8 * errors["order"].relative_error
    assert sorted(similar_outputs(conv, 2).tolist()) == list(range(8))
    adjusted = errors["similar"].module
    assert isinstance(adjusted, AdjustedOperator)
    x = torch.randn(2, 32, 7, 7)
    with torch.no_grad():
        got = float((adjusted(x) - conv(x)).norm() / conv(x).norm())
    assert got == pytest.approx(errors["similar"].relative_error, abs=0.1)


def test_a_kernel_of_zeros_is_held_exactly() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    layer = ACmix(16, 16)
    assert write_convolution(layer, conv) == 0
    assert not layer(torch.randn(1, 16, 5, 5)).any()


def test_fixed_shifts_hold_no_kernel() -> None:
    with pytest.raises(ValueError, match="free kernels"):
        write_convolution(ACmix(16, 16, shift="fixed"), nn.Conv2d(16, 16, 3, padding=1))
