"""Eight-bit ONNX files: which layers are in 8 bits, and that onnxruntime computes them so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.export import OnnxOptions
from convattn.export.kernels import has_runtimes_library
from convattn.export.quantization import LAYERS
from convattn.export.report import Operators
from convattn.export.runtime import session_options
from tests.export.networks import classifier
from tests.quick import slow_but

onnx = pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")

NETWORKS = ["acmix_resnet14", "xvolution_resnet14", "acmix_swin_tiny", "acmix_pvt_tiny", "san10"]


def exported(network: nn.Module, file: Path, operators: Operators = "standard") -> tuple[Any, float]:
    """The 8-bit file of a network, and its largest difference from PyTorch."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    options = OnnxOptions(operators=operators)
    report = convattn.export(network, file, images, precision="int8", calibration=[images], onnx=options)
    assert report.difference is not None
    return onnx.load(report.file), report.difference


def layers_by_precision(model: Any) -> tuple[list[Any], list[Any]]:
    """The layers that read 8 bits, and those that read float32."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    in_8_bits = [node for node in layers if dequantized.issuperset(node.input[:2])]
    return in_8_bits, [node for node in layers if node not in in_8_bits]


def as_computed(file: Path) -> Any:
    """What onnxruntime makes of a file."""
    options = session_options()
    options.optimized_model_filepath = str(file.with_suffix(".computed.onnx"))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize("name", slow_but(["acmix_resnet14"], NETWORKS))
@pytest.mark.parametrize("operators", ["standard", "convattn"])
def test_no_weight_is_dequantized_in_a_run(name: str, operators: Operators, tmp_path: Path) -> None:
    """Then a layer computes in float32, and is slower than in a file of float32."""
    if operators == "convattn" and not has_runtimes_library():
        pytest.skip("the operators for other runtimes were not built")
    model, difference = exported(classifier(name), tmp_path / "net.onnx", operators)
    assert difference < 0.2
    in_8_bits, _ = layers_by_precision(model)
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert len(weights) >= len(in_8_bits) > 5
    computed = as_computed(tmp_path / "net.onnx")
    constants = {tensor.name for tensor in computed.graph.initializer}
    nodes = [node for node in computed.graph.node if node.op_type == "DequantizeLinear"]
    assert not [node.name for node in nodes if node.input[0] in constants]


def test_products_of_maps_and_logits_are_in_float32(tmp_path: Path) -> None:
    model, _ = exported(classifier(), tmp_path / "net.onnx")
    in_8_bits, in_float32 = layers_by_precision(model)
    assert {node.op_type for node in in_8_bits} == {"Conv", "Gemm"}
    assert {node.op_type for node in in_float32} >= {"MatMul"}
    assert [node.op_type for node in model.graph.node if "logits" in node.output] == ["Gemm"]


class Groups(nn.Sequential):
    """Convolutions of many groups and few, and of one channel each."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(32, 32, 3, groups=groups) for groups in (1, 2, 4, 16, 32)]
        super().__init__(nn.Conv2d(3, 32, 1), *convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))

    def forward(self, images: Tensor) -> Tensor:
        """With a step between the layers, so that none are folded into one."""
        for layer in self:
            images = layer(images).sigmoid()
        return images


def test_convolutions_of_narrow_groups_are_in_float32(tmp_path: Path) -> None:
    """onnxruntime multiplies their groups one by one; of one channel each it has a way of its own."""
    model, difference = exported(Groups().eval(), tmp_path / "net.onnx")
    assert difference < 0.05

    def groups(nodes: list[Any]) -> list[int]:
        return [one.i for node in nodes for one in node.attribute if one.name == "group"]

    in_8_bits, in_float32 = layers_by_precision(model)
    assert (groups(in_8_bits), groups(in_float32)) == ([1, 1, 2, 32], [4, 16])
