"""Networks of timm, torchvision and ultralytics, converted."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.convert import ConvertReport, convert
from convattn.cost import count
from convattn.layers import ACmix
from convattn.layers.xvolution import XVolution
from tests.convert.networks import DEPTHWISE, NETWORKS, build, depthwise, images, tensors, train_step
from tests.quick import slow_but

each_network = pytest.mark.parametrize("name", NETWORKS)
QUICK = ("timm mobilenetv3_small_050", "ultralytics yolov8n")
each_trained = pytest.mark.parametrize("name", slow_but(QUICK, NETWORKS))


def converted(name: str, to: str, **options: Any) -> tuple[nn.Module, nn.Module, ConvertReport]:
    model, reports = build(name), []
    where = depthwise if to == "acmix" and name in DEPTHWISE else None
    new = convert(model, to, where=where, example=images(), report=reports.append, **options)
    return model, new, reports[0]


def counted(model: nn.Module) -> int:
    if type(model).__name__ != "DetectionModel":
        return count(model, (3, 64, 64)).macs
    # a YOLO's anchors are no tensors on the meta device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images(batch=1))
    return counter.get_total_flops() // 2


@each_network
class TestEveryNetwork:
    def test_xvolution_computes_exactly_the_same(self, name: str) -> None:
        model, new, report = converted(name, "xvolution")
        assert sum(isinstance(module, XVolution) for module in new.modules()) == len(report.replaced) > 9
        with torch.no_grad():
            for before, after in zip(tensors(model(images())), tensors(new(images())), strict=True):
                torch.testing.assert_close(after, before, rtol=0, atol=0)

    @pytest.mark.parametrize("to", ["xvolution", "acmix"])
    def test_the_report_adds_up(self, name: str, to: str) -> None:
        model, new, report = converted(name, to)
        kind = ACmix if to == "acmix" else XVolution
        assert sum(isinstance(module, kind) for module in new.modules()) == len(report.replaced) > 9
        parameters = [sum(p.numel() for p in net.parameters()) for net in (model, new)]
        assert report.parameters == tuple(parameters)
        assert sum(row.parameters[1] - row.parameters[0] for row in report.replaced) == parameters[1] - parameters[0]
        macs = [counted(net.eval()) for net in (model, new)]
        if "yolo" not in name or to == "xvolution":  # run, an ACmix may take a cheaper form than the one it trains in
            assert report.macs == tuple(macs)
        assert report.macs[0] == macs[0]
        assert sum(row.macs[1] - row.macs[0] for row in report.replaced) == report.macs[1] - report.macs[0]

    def test_acmix_of_depthwise_and_grouped_kernels_is_exact(self, name: str) -> None:
        model, new, report = converted(name, "acmix")
        assert all(torch.isfinite(t).all() for t in tensors(new.eval()(images())))
        if name in DEPTHWISE or "regnet" in name:  # 8 inputs or 4 for 4 outputs: the path holds 9 directions
            assert {row.relative_error < 1e-6 for row in report.replaced} == {True}
            with torch.no_grad():
                torch.testing.assert_close(new(images()), model(images()), rtol=1e-3, atol=1e-4)
        else:
            assert max(row.relative_error for row in report.replaced) > 0.5


@each_trained
@pytest.mark.parametrize("to", ["xvolution", "acmix"])
def test_it_trains_saves_and_loads(name: str, to: str) -> None:
    _, new, _ = converted(name, to)
    moved = train_step(new)
    # at first the attention gets no gradient but through its factor, which is 0 and moves
    factor = "attention_norm.weight" if to == "xvolution" else "mix.alpha"
    factors = [name for name, _ in new.named_parameters() if name.endswith(factor)]
    assert set(factors) <= set(moved)
    assert any(".projection." in moved_name for moved_name in train_step(new))
    file = io.BytesIO()
    torch.save(new.state_dict(), file)
    file.seek(0)
    again = converted(name, to)[1]
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for one, other in zip(tensors(new.eval()(images())), tensors(again.eval()(images())), strict=True):
            torch.testing.assert_close(one, other)
