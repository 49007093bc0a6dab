"""Blocks that have timm's fuse, reparameterize or switch_to_deploy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.models import byobnet, fastvit, ghostnet, levit, repghost, repvit, shvit, tiny_vit
from torch import Tensor, nn

from convattn.convert import convert
from convattn.layers.xvolution import XVolution
from convattn.optimize import OptimizeReport, optimize
from tests.optimize.networks import EXACT, batch_norms, norm, optimized, trained


@pytest.mark.filterwarnings("ignore:the optimized network's outputs differ")
@pytest.mark.parametrize("name", ["repvit_m0_9", "mobileone_s0"])
def test_timm_modules_with_a_method_of_their_own(name):
    net = trained(timm.create_model(name, num_classes=5))
    reports = []
    fast = optimize(net, torch.randn(1, 3, 64, 64, dtype=torch.float64), report=reports.append)
    assert {p.dtype for p in fast.parameters()} == {torch.float64}
    assert reports[0].reparameterized
    assert reports[0].relative_difference < 1e-5  # timm folds in float32
    assert not batch_norms(fast)


def test_timms_methods_are_called_and_other_things_of_those_names_are_not():
    class Fusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(x) * 2

        def fuse(self):
            self.conv.weight.mul_(2)
            self.conv.bias.mul_(2)
            return self.conv

    class Mixing(nn.Module):
        def forward(self, x):
            return self.fuse(x, x)

        def fuse(self, x, y):
            return x + y

    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.fuse(x)

    net = trained(nn.Sequential(Fusing(), norm(4), Mixing(), Holding()))
    fast, report = optimized(net, torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert report.reparameterized == ["0"]
    assert [type(m) for m in fast] == [nn.Conv2d, nn.Identity, Mixing, Holding]


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": lambda: byobnet.RepVggBlock(8, 8),
    "MobileOne": lambda: byobnet.MobileOneBlock(8, 8),
    "RepViT's norm": lambda: repvit.ConvNorm(8, 8, 3, 1, 1),
    "RepViT's depthwise": lambda: repvit.RepVggDw(8, 3),
    "RepGhost": lambda: repghost.RepGhostModule(8, 8),
    "GhostNetV3": lambda: ghostnet.GhostModuleV3(8, 8, mode="ori"),
    "FastViT's MobileOne": lambda: fastvit.MobileOneBlock(8, 8, 3),
    "FastViT's mixer": lambda: fastvit.RepMixer(8),
    "FastViT's large kernel": lambda: fastvit.ReparamLargeKernelConv(8, 8, 7, 1, 8, small_kernel=3),
    "FastViT's positions": lambda: fastvit.RepConditionalPosEnc(8),
    "SHViT's norm": lambda: shvit.Conv2dNorm(8, 8, 3, 1, 1),
    "SHViT's residual": lambda: shvit.Residual(shvit.Conv2dNorm(8, 8, 3, 1, 1, groups=8)),
    "LeViT": lambda: levit.ConvNorm(8, 8, 3, 1, 1),
    "TinyViT": lambda: tiny_vit.ConvNorm(8, 8, 3, 1, 1),
}


def images() -> Tensor:
    return torch.randn(2, 8, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def both_ways(net: nn.Module) -> list[tuple[nn.Module, OptimizeReport]]:
    """Optimized with an example and without one, and what was said; the outputs are those of the network."""
    found = []
    for inputs in ((images(),), ()):
        reports: list[OptimizeReport] = []
        fast = optimize(net, *inputs, report=reports.append)
        torch.testing.assert_close(fast(images()), net(images()), **EXACT)
        found.append((fast, reports[0]))
    return found


@pytest.mark.filterwarnings("ignore:the optimized network's outputs differ")
@pytest.mark.parametrize("name", BLOCKS)
class TestOfEveryKind:
    def test_a_block_as_built_takes_its_own_method(self, name: str) -> None:
        net = trained(nn.Sequential(BLOCKS[name]()))
        for inputs in ((images(),), ()):
            reports: list[OptimizeReport] = []
            fast = optimize(net, *inputs, report=reports.append)
            assert (reports[0].reparameterized[:1], reports[0].kept) == (["0"], {})
            torch.testing.assert_close(fast(images()), net(images()), rtol=1e-5, atol=1e-5)  # timm folds in float32

    def test_one_with_operators_is_done_part_by_part(self, name: str) -> None:
        net = convert(trained(nn.Sequential(BLOCKS[name]())), "xvolution", where=lambda *_: True)
        operators = [module for module in net.modules() if isinstance(module, XVolution)]
        for operator in operators:
            nn.init.constant_(operator.attention_norm.weight, 0.7)
        for fast, report in both_ways(net):
            assert len(report.operators) == len(operators) > 0
            assert report.kept["0"] == "its own method does not know the XVolution in it"
            assert not any(isinstance(module, nn.BatchNorm2d) for module in operators_of(fast))
            assert "modules to their parts, 0 for one: its own method does not know the XVolution" in str(report)


def operators_of(net: nn.Module) -> list[nn.Module]:
    """The operators and what is inside them."""
    return [part for module in net.modules() if isinstance(module, XVolution) for part in module.modules()]


class LowRank(nn.Module):
    """An adapter as libraries write them: it shows the weight of the convolution that it adds something to."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.base, self.more = conv, copy.deepcopy(conv)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.more(x)


@pytest.mark.parametrize(
    ("make", "named"),
    [(LowRank, "LowRank"), (lambda conv: StdConv2d(8, 8, 3, padding=1).double(), "StdConv2d")],
    ids=["adapter", "standardised"],
)
def test_what_only_looks_like_a_convolution_is_not_folded_away(
    make: Callable[[nn.Conv2d], nn.Module], named: str
) -> None:
    net = trained(nn.Sequential(repvit.ConvNorm(8, 8, 3, 1, 1)))
    net[0].c = make(net[0].c).eval()
    for _, report in both_ways(net):
        assert report.kept == {"0": f"its own method does not know the {named} in it"}


def test_a_hook_on_a_part_goes_on_listening() -> None:
    net, heard = trained(nn.Sequential(repvit.ConvNorm(8, 8, 3, 1, 1))), []
    net[0].c.register_forward_hook(lambda *args: heard.append(1))
    for fast, report in both_ways(net):
        heard.clear()
        fast(images())
        assert (report.kept, heard) == ({"0": "it has hooks"}, [1])


class TestAMethodThatIsWrong:
    class Block(nn.Module):
        def __init__(self, raises: bool) -> None:
            super().__init__()
            self.conv, self.raises = nn.Conv2d(8, 8, 1), raises

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * 2

        def fuse(self) -> nn.Module:
            conv = self.conv
            del self.conv
            if self.raises:
                raise LookupError
            return conv

    def test_raising_half_way_leaves_the_block_whole(self) -> None:
        for _, report in both_ways(trained(nn.Sequential(self.Block(raises=True)))):
            assert report.kept == {"0": "its own method raises LookupError"}

    def test_other_outputs_are_seen_on_an_example(self) -> None:
        _, report = optimized(trained(nn.Sequential(self.Block(raises=False))), images())
        assert report.kept == {"0": "its own method changes its outputs"}
