"""Converted networks run in onnxruntime as they do here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convattn.convert import convert
from convattn.optimize import optimize
from tests.convert.networks import NETWORKS, build, depthwise, images, tensors
from tests.quick import slow_but

runtime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
pytest.importorskip("onnxscript", reason="needs pip install 'convattn[export]'")

DYNAMIC = torch.export.Dim.DYNAMIC


def exported(model: nn.Module, x: torch.Tensor, file: Path, **options: object) -> runtime.InferenceSession:
    torch.onnx.export(model, (x,), dynamo=True, verbose=False, **options).save(file)
    return runtime.InferenceSession(file, providers=["CPUExecutionProvider"])


def answer(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return tensors(model(x))[0].numpy()


def check(expected: np.ndarray, session: runtime.InferenceSession, x: torch.Tensor) -> None:
    (got, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(got - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


def small(to: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1, bias=False)
    new = convert(nn.Sequential(*layers), to).eval()
    for name, parameter in new.named_parameters():  # the attention takes part
        if name.endswith(("mix.alpha", "attention_norm.weight")):
            nn.init.constant_(parameter, 0.7)
    return new


@pytest.mark.parametrize("form", ["trained", pytest.param("optimized", marks=pytest.mark.slow)])
@pytest.mark.parametrize("to", slow_but(["acmix"], ["acmix", "xvolution"]))
def test_any_size_of_image(to: str, form: str, tmp_path: Path) -> None:
    model = small(to)
    model = optimize(model) if form == "optimized" else model
    sizes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)
    session = exported(model, torch.randn(2, 8, 9, 10), tmp_path / "net.onnx", dynamic_shapes=sizes)
    for shape in ((2, 8, 9, 10), (1, 8, 12, 7)):
        x = torch.randn(shape)
        check(answer(model, x), session, x)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["acmix", "xvolution"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, to: str, tmp_path: Path) -> None:
    deep = {"timm convnext_tiny", "timm mobilenetv3_small_050", "timm efficientnet_b0"}
    new = convert(build(name), to, where=depthwise if name in deep else None).eval()
    # Before the export: ultralytics' head keeps its anchors in plain attributes, and the exporter leaves fakes in them.
    expected = answer(new, images(batch=1))
    check(expected, exported(new, images(batch=1), tmp_path / "net.onnx"), images(batch=1))
