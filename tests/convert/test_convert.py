"""What is chosen, what is refused, and what the report says."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from convattn.convert import convert
from convattn.convert.adjusted import AdjustedOperator
from convattn.layers import ACmix, LocalAttention2d
from convattn.layers.xvolution import XVolution
from convattn.optimize import optimize


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 1)),
        nn.Conv2d(12, 12, 5, padding=4, dilation=2, bias=False),
    )


def names(model: nn.Module, **options: object) -> list[str]:
    report = convert(model, "xvolution", dry_run=True, **options)
    return [layer.name for layer in report.replaced]


class TestWhere:
    @pytest.mark.parametrize(
        ("where", "chosen"),
        [
            (None, ["3.0", "4"]),
            ("3", ["3.0"]),
            ("0", ["0"]),
            ("*.0", ["3.0"]),
            (re.compile(r"^[34]"), ["3.0", "4"]),
            (nn.Conv2d, ["0", "3.0", "4"]),
            (["0", "4"], ["0", "4"]),
            (lambda name, conv: conv.kernel_size == (5, 5), ["4"]),
        ],
    )
    def test_choices(self, where: object, chosen: list[str]) -> None:
        assert names(small(), where=where) == chosen

    @pytest.mark.parametrize(("stage", "prefix"), [(1, "layer1."), (4, "layer4.")])
    def test_stages_have_the_papers_numbers(self, stage: int, prefix: str) -> None:
        chosen = names(timm.create_model("resnet18"), where=stage)
        assert len(chosen) == 4
        assert all(name.startswith(prefix) for name in chosen)

    def test_a_stage_holds_what_stands_between_two_feature_maps(self) -> None:
        chosen = names(timm.create_model("efficientnet_b0"), where=3)
        assert {name.rsplit(".", 2)[0] for name in chosen} == {"blocks.3", "blocks.4"}

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("layer9", r"means no convolution larger than 1x1 of ResNet; near it: layer"),
            (re.compile("stem"), r"it has conv1, layer1\.0\.conv1"),
            (7, r"the network has the stages \[1, 2, 3, 4\], got 7"),
            (nn.Conv3d, r"means no convolution"),
        ],
    )
    def test_what_means_nothing_is_an_error(self, where: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            convert(timm.create_model("resnet18"), "acmix", where=where)

    def test_stages_of_a_network_that_names_none(self) -> None:
        with pytest.raises(ValueError, match="does not say where its stages are"):
            convert(small(), "acmix", where=1)

    def test_what_is_no_choice(self) -> None:
        with pytest.raises(TypeError, match=r"where takes a name, a glob.*got 1\.5"):
            convert(small(), "acmix", where=1.5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "to", "reason"),
        [
            (nn.Conv2d(8, 8, 4, padding=2), "acmix", "even kernel"),
            (nn.Conv2d(8, 8, 3), "acmix", r"padding is \(0, 0\): an ACmix keeps the size of the map, as \(1, 1\)"),
            (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "acmix", "border is 'reflect'"),
            (nn.ConvTranspose2d(8, 8, 3), "xvolution", "transposed"),
        ],
    )
    def test_what_cannot_be_replaced_says_why(self, layer: nn.Module, to: str, reason: str) -> None:
        with pytest.raises(ValueError, match=rf"nothing can be replaced(.|\n)*{reason}"):
            convert(nn.Sequential(layer), to, where="0")

    @pytest.mark.parametrize(
        ("layer", "to", "reason"),
        [
            (nn.Conv2d(8, 8, 3, padding=1, groups=8), "acmix", "depthwise"),
            (nn.Conv2d(3, 8, 3, padding=1), "xvolution", "reads the image itself"),
        ],
    )
    def test_what_costs_much_is_replaced_where_it_is_named(self, layer: nn.Module, to: str, reason: str) -> None:
        net = nn.Sequential(layer)
        assert reason in (convert(net, to, dry_run=True).skipped[0].reason or "")
        assert len(convert(net, to, where="0", dry_run=True).replaced) == 1

    def test_a_subclass_keeps_its_own_way_or_stays(self) -> None:
        from timm.layers import StdConv2d

        net, x = nn.Sequential(StdConv2d(8, 8, 3, padding=1)), torch.randn(1, 8, 7, 7)
        assert torch.equal(convert(net, "xvolution")(x), net(x))
        with pytest.raises(ValueError, match=r"a StdConv2d computes something else than nn\.Conv2d"):
            convert(net, "acmix")

    def test_hooks_stay_where_they_are(self) -> None:
        net = small()
        net[4].register_forward_hook(lambda *args: None)
        assert convert(net, "acmix", dry_run=True).skipped[-1].reason == "it has hooks, which an operator would lose"

    def test_operators_are_not_converted_again(self) -> None:
        once = convert(small(), "xvolution")
        with pytest.raises(ValueError, match="it reads the image itself"):
            convert(once, "xvolution")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"to": "involution"}, ValueError, "to must be one of 'acmix', 'xvolution' or a callable"),
            ({"to": 3}, TypeError, "a name or a callable"),
            ({"to": "acmix", "operator_args": {"heads": 2}}, TypeError, "no option heads; it has num_heads, grouping"),
            ({"to": "acmix", "operator_args": {"num_heads": 0}}, ValueError, "num_heads must be 'fit' or at least 1"),
            ({"to": "acmix", "operator_args": {"grouping": "x"}}, ValueError, "grouping must be one of"),
            ({"to": "xvolution", "operator_args": {"heads": 2}}, TypeError, "no option heads; it has attention"),
            ({"to": "xvolution", "operator_args": {"attention": nn.Identity()}}, TypeError, "one attention module"),
            ({"to": ACmix, "operator_args": {"num_heads": 2}}, TypeError, "give a callable its options"),
            ({"to": lambda conv: 3}, TypeError, "must return a module, got int"),
        ],
    )
    def test_wrong_options(self, options: dict[str, object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            convert(small(), **options)

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    @pytest.mark.parametrize("work", [partial(convert, to="acmix"), optimize], ids=["convert", "optimize"])
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (torch.compile, r"is compiled: \w+ it first, then torch\.compile"),
            (torch.jit.script, r"is scripted, so its modules cannot be replaced: \w+ it before torch\.jit"),
            (lambda net: exported(net), r"is exported, so it has no modules to replace: \w+ it before torch\.export"),
            (lambda net: exported(net).module(), r"is exported, so it has no modules to replace"),
            (lambda net: "resnet50", r"must be a torch\.nn\.Module, got str"),
        ],
        ids=["compiled", "scripted", "exported", "exported module", "no network"],
    )
    def test_what_holds_no_modules(
        self, make: Callable[[nn.Module], object], message: str, work: Callable[[object], object]
    ) -> None:
        with pytest.raises(TypeError, match=message):
            work(make(small().eval()))

    def test_a_symbolic_trace_holds_them(self) -> None:
        traced, x = torch.fx.symbolic_trace(small().eval()), torch.randn(1, 3, 8, 8)
        new = convert(traced, "xvolution")
        assert sum(isinstance(module, XVolution) for module in new.modules()) == 2
        torch.testing.assert_close(optimize(new)(x), traced(x))


def exported(net: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(net, (torch.randn(1, 3, 8, 8),))


class TestTheCopy:
    def test_the_network_is_left_as_it_is(self) -> None:
        net = small()
        before, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
        state = torch.get_rng_state()
        convert(net, "acmix", dry_run=True)
        assert torch.equal(torch.get_rng_state(), state)
        convert(net, "xvolution")
        assert kinds == [type(m) for m in net.modules()]
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not any(module._forward_pre_hooks for module in net.modules())

    def test_a_convolution_in_two_places_is_one_operator_in_both(self) -> None:
        conv = nn.Conv2d(8, 8, 3, padding=1)
        net, reports = nn.Sequential(conv, nn.ReLU(), conv), []
        new = convert(net, "xvolution", example=torch.randn(1, 8, 6, 6), report=reports.append)
        assert new[0] is new[2]
        assert reports[0].macs[1] - reports[0].macs[0] == sum(r.macs[1] - r.macs[0] for r in reports[0].replaced)

    def test_a_lone_convolution(self) -> None:
        conv, x = nn.Conv2d(6, 10, 3, padding=1), torch.randn(2, 6, 5, 7)
        new = convert(conv, "xvolution")
        assert isinstance(new, XVolution)
        assert torch.equal(new(x), conv(x))

    def test_what_others_wrote_on_it_and_its_mode_stay(self) -> None:
        net = small().eval()
        net[4].i, net[4].f = 4, -1
        new = convert(net, "acmix", where="4")
        assert (new[4].i, new[4].f, new[4].training) == (4, -1, False)

    def test_dtype_and_half_precision(self) -> None:
        for dtype in (torch.float64, torch.bfloat16):
            new = convert(small().to(dtype), "acmix")
            assert {p.dtype for p in new.parameters()} == {dtype}
            assert new(torch.randn(1, 3, 9, 9, dtype=dtype)).dtype == dtype

    def test_a_network_without_memory(self) -> None:
        new = convert(small().to("meta"), "acmix")
        assert {p.device.type for p in new.parameters()} == {"meta"}


class TestCallables:
    def test_factories_are_called_as_the_resnets_operators(self) -> None:
        new = convert(small(), partial(LocalAttention2d, num_heads=2))
        assert isinstance(new[3][0], LocalAttention2d)
        assert new(torch.randn(1, 3, 9, 9)).shape == small()(torch.randn(1, 3, 9, 9)).shape

    def test_others_get_the_convolution(self) -> None:
        new = convert(small(), lambda conv: nn.Sequential(copy.deepcopy(conv)), where="4")
        assert type(new[4]) is nn.Sequential

    def test_another_size_is_an_error(self) -> None:
        class Shrinks(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x[..., 1:, 1:]

        with pytest.raises(ValueError, match=r"Shrinks in place of 4 turns \[1, 12, 16, 17\] into \[1, 12, 15, 16\]"):
            convert(small(), lambda conv: Shrinks(), where="4")


def test_the_report_reads_as_a_table() -> None:
    report = convert(small(), "acmix", example=torch.randn(1, 3, 16, 16), dry_run=True)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "from", "to", "parameters", "->", "MMACs", "->", "error"]
    assert lines[2].startswith("4              Conv2d 12-12 5x5 dilation 2  ACmix, 4 heads")
    assert lines[-2] == "replaced 2 convolutions, left 1"
    assert lines[-1] == "left 0: it reads the image itself: name it in where to replace it"
    no_images = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    assert "not counted, pass an example" in str(convert(no_images, "acmix", dry_run=True))


def test_a_bias_and_an_order_follow_the_operator() -> None:
    new = convert(small(), "acmix", operator_args={"grouping": "similar", "num_heads": 2}, where=["3", "4"])
    assert isinstance(new[3][0], AdjustedOperator)
    assert new[3][0].bias is not None
    assert new[4].bias is None
    assert sorted(new[4].order.tolist()) == list(range(12))
