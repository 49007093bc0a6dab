"""Eight-bit ONNX files, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from convattn.export.runtime import needed

LAYERS = ("Conv", "Gemm", "MatMul")
"""Where the weights are. Products of two maps, as attention's, stay in float32."""


def quantize(file: Path, images: Iterable[Tensor]) -> None:
    """Write an ONNX file anew with 8-bit convolutions and linear layers, whose ranges some images set.

    Args:
        file: in float32; its metadata stay.
        images: each ``[B, 3, H, W]``.
    """
    onnx, tools = needed("onnx"), needed("onnxruntime.quantization")
    model = onnx.load(file)
    weights = {tensor.name for tensor in model.graph.initializer}
    of_maps = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
        tools.quantize_static(
            str(file),
            str(file),
            _reader(tools.CalibrationDataReader, images),
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=of_maps,
            per_channel=True,
        )
    finally:
        logging.root.setLevel(level)
    quantized = onnx.load(file)
    onnx.helper.set_model_props(quantized, {one.key: one.value for one in model.metadata_props})
    onnx.save(quantized, file)


def _reader(base: Any, images: Iterable[Tensor]) -> Any:
    class Reader(base):
        """Gives the images in order."""

        def __init__(self) -> None:
            self.images: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            """The next input, or None at the end."""
            image = next(self.images, None)
            return None if image is None else {"images": image.cpu().numpy()}

    return Reader()
