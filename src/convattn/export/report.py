"""What an export gives beside its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]
Sizes: TypeAlias = Literal["batch", "image"]
Operators: TypeAlias = Literal["standard", "convattn"]


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is written; OpenVINO's files are made of one.

    Args:
        opset: the version of ONNX's operators, 16 to 20.
        operators: ``"standard"``: ONNX's operators alone, for every runtime. ``"convattn"``: also our own, which
            our CPU kernels compute: in onnxruntime once :func:`convattn.export.onnxruntime_library` is registered
            with its session, in OpenVINO in Python once its core has :func:`convattn.export.openvino_operators`.
    """

    opset: int = 18
    operators: Operators = "standard"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how the file compares with the network in PyTorch.

    Args:
        file: the file, or for CoreML the folder.
        precision: of its arithmetic.
        size: height and width of the example.
        sizes: which sizes the file takes beside the example's: other batches, or other images too.
        difference: the largest difference from PyTorch's outputs, relative to the largest output; of a detector's
            boxes and scores see :func:`convattn.export.comparison.difference_of_detections`. None: there was nothing to
            compare, see ``note``.
        latency_ms: the file's median time for the first image of the example.
        torch_latency_ms: that of the network in PyTorch, folded likewise, with as many threads; of a bfloat16
            file under ``torch.autocast``, else in float32.
        note: why the answers were not compared.
    """

    file: Path
    precision: Precision
    size: tuple[int, int]
    sizes: Sizes
    difference: float | None = None
    latency_ms: float | None = None
    torch_latency_ms: float | None = None
    note: str = ""

    def __str__(self) -> str:
        taken = f"images of {self.size[0]}x{self.size[1]}" if self.sizes == "batch" else "images of any size"
        told = [f"{self.file}: {taken}, {self.precision}"]
        if self.difference is not None:
            told.append(f"largest difference from PyTorch {self.difference:.1e} of the largest output")
        if self.latency_ms is not None and self.torch_latency_ms is not None:
            beside = f"{self.torch_latency_ms:.1f} ms" + (" in bfloat16" if self.precision == "bfloat16" else "")
            told.append(f"latency of one image {self.latency_ms:.1f} ms, in PyTorch {beside}")
        return "\n".join([*told, self.note] if self.note else told)
