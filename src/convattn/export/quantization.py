"""Eight-bit ONNX files, by onnxruntime's static quantisation."""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convattn.errors import UserError
from convattn.export.kernels import DOMAIN
from convattn.export.packages import needed
from convattn.export.runtime import session_options

LAYERS = ("Conv", "Gemm", "MatMul")
"""Where the weights are."""

TO_FLOAT32 = ("Gemm", "MatMul")
"""Layers that read 8 bits and give float32: what follows them, as a normalisation or a softmax, computes in it."""

FEWEST_OUTPUTS = 16
"""Of a group of a convolution in 8 bits: onnxruntime multiplies group by group, which costs more than float32 below."""


def quantize(file: Path, images: Iterable[Tensor]) -> None:
    """Write an ONNX file anew with 8-bit convolutions and linear layers, whose ranges some images set.

    Products of two maps, as attention's, and convolutions of narrow groups stay in float32.

    Args:
        file: in float32; its metadata stay.
        images: each ``[B, 3, H, W]``.

    Raises:
        UserError: this onnxruntime cannot quantise a file of our own operators.
    """
    onnx, tools = needed("onnx"), needed("onnxruntime.quantization")
    model = onnx.load(file)
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    if ours:  # whose outputs onnx cannot infer, and tensors of unknown type get no range
        kind, rank = onnx.TensorProto.FLOAT, {"correlate": 5}
        model.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(node.output[0], kind, [None] * rank.get(node.op_type, 4))
            for node in ours
        )
        onnx.save(model, file)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    in_float32 = [node.name for node in model.graph.node if node.op_type in LAYERS and not _pays(node, shapes)]
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
        with tempfile.TemporaryDirectory() as folder:
            tools.quantize_static(
                str(file),
                str(file),
                op_types_to_quantize=list(LAYERS),
                nodes_to_exclude=in_float32,
                per_channel=True,
                # of signed maps onnxruntime computes some convolutions in float32 on x86: those that share their input
                activation_type=tools.QuantType.QUInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": list(TO_FLOAT32)},
                **_calibrated(tools, file, images, Path(folder) if ours else None),
            )
    finally:
        logging.root.setLevel(level)
    quantized = onnx.load(file)
    onnx.helper.set_model_props(quantized, {one.key: one.value for one in model.metadata_props})
    onnx.save(quantized, file)


def _pays(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a layer is faster in 8 bits: it has weights, and its groups are wide or depthwise."""
    weight = shapes.get(node.input[1])
    if weight is None or node.op_type != "Conv":
        return weight is not None
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    outputs, inputs = weight[0] // groups, weight[1]
    return groups == 1 or outputs >= FEWEST_OUTPUTS or outputs == inputs == 1


def _calibrated(tools: Any, file: Path, images: Iterable[Tensor], folder: Path | None) -> dict[str, Any]:
    """What sets the ranges: the images, or the ranges themselves in a folder where the file holds our own operators."""
    reader = _reader(tools.CalibrationDataReader, images)
    if folder is None:
        return {"calibration_data_reader": reader}
    if "calibration_cache_path" not in inspect.signature(tools.quantize_static).parameters:
        raise UserError(
            "8 bits beside convattn's own operators need a newer onnxruntime (pip install --upgrade onnxruntime) "
            "or standard operators"
        )
    ranges = folder / "ranges.json"
    tools.save_tensors_data(_ranges(tools, file, reader, folder), ranges)
    return {"calibration_data_reader": None, "calibration_cache_path": ranges}


def _ranges(tools: Any, file: Path, reader: Any, folder: Path) -> Any:
    """The least and largest values of every tensor on the images."""

    class Calibrator(tools.MinMaxCalibrater):
        """Opens files of our own operators too."""

        def create_inference_session(self) -> None:
            runtime, options = needed("onnxruntime"), session_options()
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            self.infer_session = runtime.InferenceSession(
                self.augmented_model_path, options, providers=["CPUExecutionProvider"]
            )

    calibrator = Calibrator(file, list(LAYERS), augmented_model_path=str(folder / "augmented.onnx"))
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(reader)
    return calibrator.compute_data()


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
