"""The rival in the benchmark computes what ACmix computes: only then do their figures compare."""

import pytest
import torch

from benchmarks.unfold import UnfoldACmix
from convattn import ACmix, load_official


@pytest.mark.parametrize("stride", [1, 2], ids=["stride1", "stride2"])
@pytest.mark.parametrize("size", [(9, 8), (8, 11)], ids=["9x8", "8x11"])
def test_unfolding_equals_acmix_forward_and_backward(stride, size):
    torch.manual_seed(0)
    theirs = UnfoldACmix(6, 8, stride=stride).double()
    ours = ACmix(6, 8, stride=stride, dtype=torch.float64)
    report = load_official(ours, theirs.state_dict())
    assert (report.missing, report.unexpected) == ([], [])

    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    expected, found = theirs(x), ours(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    grad = torch.randn_like(expected)
    (dx,) = torch.autograd.grad(found, x, grad)
    (expected_dx,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(dx, expected_dx, rtol=0, atol=1e-12)
