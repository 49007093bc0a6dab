"""Whole networks beside a plain one."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from benchmarks.network import (
    NetworkRun,
    TrainingStep,
    build,
    checked,
    form_of,
    inference,
    peak_here,
    require_form,
    require_model,
)
from convattn.errors import UserError
from convattn.optimize.packing import PackedConvolution

SMALL = NetworkRun(
    models=("acmix_resnet14",),
    base="conv_resnet14",
    size=32,
    batch=2,
    rounds=2,
    processes=1,
    threads=1,
    allow_busy=True,
)


def test_the_peak_of_inference_holds_its_maps():
    peak = peak_here("model", "acmix_resnet14", asdict(replace(SMALL, size=64, batch=16)))
    assert peak > 16 * 4 * 64 * 32 * 32, "the stem's output alone is that large"


class Noisy(nn.Module):
    """Computes something else every time."""

    def __init__(self):
        super().__init__()
        self.net = build("conv_resnet14")

    def forward(self, x):
        return self.net(x) + 10 * torch.randn(x.shape[0], 1000, dtype=x.dtype)


@pytest.mark.filterwarnings("ignore:the optimized network's outputs differ")
@pytest.mark.parametrize("kind", ["model", "train"])
def test_a_wrong_network_is_found(kind):
    _, check = checked(kind, Noisy(), SMALL)
    assert check.state == "wrong"
    assert "differ" in check.note


def test_every_branch_counts():
    """timm starts the last batch norm of a branch at zero, which would hide the branch from the comparison."""
    gains = [m.weight.abs().min() for m in build("acmix_resnet14").modules() if isinstance(m, nn.BatchNorm2d)]
    assert min(gains) > 0.1


def test_a_step_trains():
    step = TrainingStep(build("conv_resnet14"), SMALL)
    before = step.model.fc.weight.detach().clone()
    step()
    assert not torch.equal(step.model.fc.weight, before)


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="no model 'acmix_resnet5'; did you mean acmix_resnet50"):
        require_model("acmix_resnet5")


def test_a_network_can_be_measured_with_packed_weights():
    name = "conv_resnet14@packed"
    require_model(name)
    packed = inference(build(name), SMALL, form_of(name))
    assert any(isinstance(m, PackedConvolution) for m in packed.modules())
    require_form(name, "model", SMALL)
    with pytest.raises(
        UserError, match="weights are packed for inference alone, on a CPU in float32 or bfloat16, got train"
    ):
        require_form(name, "train", SMALL)
    with pytest.raises(UserError, match="in float16 on cpu; leave @packed out"):
        require_form(name, "model", replace(SMALL, dtype="float16"))


def test_a_network_can_be_measured_as_trained():
    name = "xvolution_resnet14@trained"
    require_model(name)
    trained, folded = (inference(build(name), SMALL, form) for form in (form_of(name), form_of("xvolution_resnet14")))
    assert any(isinstance(m, nn.BatchNorm2d) for m in trained.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
