"""ResNets with X-volution and what its paper compares it with."""

import pytest
import timm
import torch

import convattn
from convattn.cost import count
from convattn.layers import PSSA, AugmentedConv2d, GlobalAttention2d, Involution2d, MultiConvolution, XVolution

OPERATORS = {
    "xvolution": XVolution,
    "pssa": PSSA,
    "multiconv": MultiConvolution,
    "global": GlobalAttention2d,
    "aa": AugmentedConv2d,
    "involution": Involution2d,
}
TINY = {"channels": (16, 16, 24, 32), "num_classes": 4}


@pytest.mark.parametrize(
    ("depth", "stage", "millions", "convolutions"),
    [(34, 4, 43.86, 4.743), (50, 4, 47.62, 5.284), (34, 2, 23.65, 5.102), (50, 2, 27.41, 5.643)],
)
def test_parameters_and_multiply_adds(depth, stage, millions, convolutions):
    cost = count(timm.create_model(f"xvolution_resnet{depth}", stages=(stage,)))
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=5e-4)
    assert (cost.macs - cost.macs_by_path["attention"]) / 1e9 == pytest.approx(convolutions, rel=5e-4)


@pytest.mark.parametrize("depth", [34, 50])
@pytest.mark.parametrize("kind", OPERATORS)
def test_stands_where_the_paper_puts_it(kind, depth):
    net = timm.create_model(f"{kind}_resnet{depth}", stages=(2, 4), **TINY)
    for number in (1, 2, 3, 4):
        blocks = getattr(net, f"layer{number}")
        assert all(isinstance(block.conv2, OPERATORS[kind]) == (number in (2, 4)) for block in blocks)
    assert net(torch.randn(2, 3, 65, 70)).shape == (2, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "pssa"},
        {"attention": "global"},
        {"attention": "involution"},
        {"propagation": "summed", "lengths": (0, 1, 3, 5), "dilated_kernel_size": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["xvolution_resnet34", "xvolution_resnet14"])
def test_the_optimized_network_computes_the_same(name, options):
    torch.manual_seed(0)
    net = timm.create_model(name, operator_args=options, **TINY).double()
    for _ in range(2):
        net(torch.randn(4, 3, 65, 70, dtype=torch.float64))
    reports = []
    fast = convattn.optimize(net.eval(), torch.randn(2, 3, 65, 70, dtype=torch.float64), report=reports.append)
    assert reports[0].relative_difference < 1e-12
    assert not reports[0].left
    assert set(reports[0].operators.values()) == {"separate"}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())


@pytest.mark.parametrize("kernel", [1, 5, 9])
def test_a_plain_convolution_of_another_kernel(kernel):
    """Figure 3a's baseline: the last stage's 3x3 convolutions are k by k, and nothing else changes."""
    torch.manual_seed(0)
    net = timm.create_model("conv_resnet50", operator_args={"kernel_size": kernel}, stages=(4,), **TINY)
    plain = timm.create_model("conv_resnet50", **TINY)
    assert {block.conv2.kernel_size for block in net.layer3} == {(3, 3)}
    assert {block.conv2.kernel_size for block in net.layer4} == {(kernel, kernel)}
    channels = net.layer4[0].conv2.out_channels
    assert net.layer4[1].conv2.weight.std().item() == pytest.approx((2 / channels / kernel**2) ** 0.5, rel=0.1)
    grown = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in plain.parameters())
    assert grown == 3 * (kernel**2 - 9) * channels**2
    assert net(torch.randn(2, 3, 65, 70)).shape == (2, 4)
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        timm.create_model("conv_resnet14", operator_args={"kernel_size": 4})


def test_a_step_lowers_the_loss():
    torch.manual_seed(0)
    net = timm.create_model("xvolution_resnet14", stem="small", **TINY)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
