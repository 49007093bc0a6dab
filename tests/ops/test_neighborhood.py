import numpy as np
import pytest
import torch

from convattn.ops import Neighborhood

NUMPY_MODE = {"reflect": "reflect", "replicate": "edge"}


@pytest.mark.parametrize("border", ["reflect", "replicate"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_border_rules_are_numpys(border, size):
    reach = 9
    expected = np.pad(np.arange(size), reach, mode=NUMPY_MODE[border]) if size > 1 else np.zeros(2 * reach + 1, int)
    nbhd = Neighborhood(((0, 0),), border=border)
    positions = range(-reach, size + reach)
    assert [nbhd.source(p, size) for p in positions] == expected.tolist()
    assert nbhd.sources(torch.tensor(list(positions)), size).tolist() == expected.tolist()


def test_zeros_border_reads_nothing_outside():
    nbhd = Neighborhood(((0, 0),), border="zeros")
    assert [nbhd.source(p, 2) for p in (-1, 0, 1, 2)] == [None, 0, 1, None]
    assert nbhd.sources(torch.tensor([-1, 0, 1, 2]), 2).tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_output_size_and_taps_are_those_of_a_padded_convolution(kernel, stride, dilation):
    conv = torch.nn.Conv2d(1, 1, kernel, stride, dilation * (kernel // 2), dilation, bias=False, dtype=torch.float64)
    nbhd = Neighborhood.window(kernel, stride=stride, dilation=dilation, border="zeros")
    for height, width in [(1, 1), (4, 7), (9, 6)]:
        x = torch.randn(1, 1, height, width, dtype=torch.float64)
        views = torch.stack(list(nbhd.views(nbhd.pad(x), height, width)))
        ours = torch.einsum("mbchw,m->bchw", views, conv.weight.flatten())
        torch.testing.assert_close(ours, conv(x))
        assert ours.shape[-2:] == nbhd.output_size(height, width)


def test_unpad_is_the_adjoint_of_pad():
    for border in ("reflect", "zeros", "replicate"):
        nbhd = Neighborhood.window(7, border=border)
        x = torch.randn(1, 1, 3, 2, dtype=torch.float64)
        padded = nbhd.pad(x)
        y = torch.randn_like(padded)
        torch.testing.assert_close((padded * y).sum(), (x * nbhd.unpad(y, 3, 2)).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offsets": ()}, "at least one offset"),
        ({"offsets": ((0, 1), (0, 1))}, r"\(0, 1\) several times"),
        ({"offsets": ((0, 0),), "border": "wrap"}, "'reflect', 'zeros', 'replicate', got 'wrap'"),
        ({"offsets": ((0, 0),), "stride": (0, 1)}, "stride must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Neighborhood(**arguments)
