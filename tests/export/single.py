"""Networks of one operator of ours, as ONNX models that hold it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn.export import kernels
from tests.ops.cases import (
    GEOMETRIES,
    RESIZED,
    RESIZED_WINDOWS,
    WINDOWS,
    Acmix,
    Aggregate,
    Attend,
    Correlate,
    Geometry,
    GroupConvolution,
    OffsetConvolution,
    PixelShift,
    PixelShiftProduct,
    WindowAttend,
)

BY_OFFSETS = [Attend, Correlate, Aggregate, PixelShift, PixelShiftProduct, OffsetConvolution]
OTHERS = [o for o in RESIZED if o.name.split("-")[0] in ("attend", "correlate", "aggregate", "offset_convolution")]
MATRIX = [
    *((operator, geometry) for operator in BY_OFFSETS for geometry in GEOMETRIES),
    *((operator, geometry) for operator in (WindowAttend, Acmix, GroupConvolution) for geometry in WINDOWS),
    *((operator, geometry) for operator in OTHERS for geometry in (GEOMETRIES[1], GEOMETRIES[6])),
    *((operator, geometry) for operator in RESIZED_WINDOWS for geometry in (WINDOWS[1], Geometry(3, 5, 7))),
]
"""Every operator on every shape of the contract."""


class OneOperator(nn.Module):
    """An operator as a network of its tensors."""

    def __init__(self, operator: Any, geometry: Geometry) -> None:
        super().__init__()
        self.operator, self.geometry = operator, geometry

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.operator.run(inputs, self.geometry)
        return found


def recorded(network: nn.Module, inputs: list[Tensor], free: bool = True, acmix: Any = "acmix_layer") -> Any:
    """The ONNX model of a network, with our operators in it; the maps' batch and sizes are free."""
    onnx = pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
    names = [f"input{place}" for place in range(len(inputs))]
    axes = {name: {0: "b", **({2: "h", 3: "w"} if x.dim() == 4 else {})} for name, x in zip(names, inputs, strict=True)}
    data = io.BytesIO()
    with kernels.recorded(acmix):
        torch.onnx.export(
            network,
            tuple(inputs),
            data,
            dynamo=False,
            input_names=names,
            output_names=["out"],
            dynamic_axes=axes if free else None,
            opset_version=18,
            custom_opsets={kernels.DOMAIN: 1},
        )
    return onnx.load_model_from_string(data.getvalue())


def drawn(operator: Any, geometry: Geometry, seed: int = 0) -> list[Tensor]:
    return [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(seed))]


def resized(operator: Any, geometry: Geometry, first: list[Tensor], batch: int) -> list[Tensor]:
    """Maps of another size and batch, beside the other tensors of `first`."""
    return [
        x[:1].expand(batch, *x.shape[1:]).contiguous() if x.dim() == 4 and x.shape[0] == 2 else y
        for x, y in zip(drawn(operator, geometry, 1), first, strict=True)
    ]


def name_in_file(operator: Any) -> str:
    """That of the node that stands for a case of the contract."""
    return "acmix_layer" if operator is Acmix else operator.name.split("-")[0]


def ours(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node if node.domain == kernels.DOMAIN}
