"""Rewrites of ONNX models: what is rewritten computes the same, and nothing else is."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
ir = pytest.importorskip("onnx_ir", reason="needs pip install 'convattn[export]'")

from convattn.export.rewriting import rewritten  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, about how it works


class OfTokens(nn.Module):
    """A convolution from a map of tokens ``[B, H, W, C]`` or of planes to tokens, in two parts, or to planes."""

    def __init__(self, conv: nn.Conv2d, *, reads: str = "tokens", gives: str = "tokens") -> None:
        super().__init__()
        self.conv, self.reads, self.gives = conv, reads, gives

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.permute(0, 3, 1, 2) if self.reads == "tokens" else x)
        if self.gives == "planes":
            return out.relu()
        of_all = out.permute(0, 2, 3, 1)
        first, second = (part.permute(0, 2, 3, 1) for part in out.split(5, 1))
        return of_all.sum(-1, keepdim=True) + first * second


def _written(network: nn.Module, x: Tensor) -> Any:
    data = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "b"}}}
    torch.onnx.export(network, (x,), data, dynamo=False, opset_version=18, **names)
    return onnx.load_model_from_string(data.getvalue())


def _rewritten(network: nn.Module, x: Tensor) -> Any:
    return ir.serde.serialize_model(rewritten(ir.serde.deserialize_model(_written(network, x))))


def _kinds(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_of_tokens_is_a_matrix_product(bias: bool) -> None:
    network, x = OfTokens(nn.Conv2d(6, 10, 1, bias=bias)), torch.randn(2, 5, 3, 6)
    model = _rewritten(network, x)
    assert "MatMul" in _kinds(model)
    assert "Conv" not in _kinds(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (x, x[:1]):
        found = torch.from_numpy(session.run(None, {"x": batch.numpy()})[0])
        torch.testing.assert_close(found, network(batch).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        OfTokens(nn.Conv2d(6, 10, 3)),
        OfTokens(nn.Conv2d(6, 10, 1, stride=2)),
        OfTokens(nn.Conv2d(6, 10, 1, padding=1)),
        OfTokens(nn.Conv2d(6, 10, 1, groups=2)),
        OfTokens(nn.Conv2d(6, 10, 1), reads="planes"),
        OfTokens(nn.Conv2d(6, 10, 1), gives="planes"),
    ],
    ids=["3x3", "stride", "padding", "groups", "from_planes", "to_planes"],
)
def test_other_convolutions_stay(network: OfTokens) -> None:
    x = torch.randn(2, 5, 4, 6) if network.reads == "tokens" else torch.randn(2, 6, 5, 4)
    before, after = _written(network, x), _rewritten(network, x)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
