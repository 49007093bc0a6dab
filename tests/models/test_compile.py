"""torch.compile records every network as one graph, for inference and for training."""

import pytest
import timm
import torch

import convattn  # noqa: F401  (timm knows the networks by it)
from tests.models.test_tracing import NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_graph_break(name):
    torch.manual_seed(0)
    net, x = timm.create_model(name, num_classes=3, **NETWORKS[name]), torch.randn(2, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), net.eval()(x), rtol=1e-4, atol=1e-5)
    net.train()
    torch.manual_seed(1)
    loss = compiled(x).square().sum()
    found = torch.autograd.grad(loss, net.parameters(), allow_unused=True)
    torch.manual_seed(1)
    expected = torch.autograd.grad(net(x).square().sum(), net.parameters(), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
