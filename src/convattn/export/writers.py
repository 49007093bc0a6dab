"""One writer for each kind of file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convattn import ops
from convattn.errors import UserError
from convattn.export import kernels
from convattn.export.openvino_extension import openvino_operators
from convattn.export.packages import needed
from convattn.export.program import DetectorProgram, Program
from convattn.export.report import OnnxOptions, Precision, Sizes
from convattn.export.rewriting import rewritten
from convattn.export.runtime import RUN, TORCH_METADATA
from convattn.ops._recording import fixed_sizes

OPSETS = range(16, 21)
"""What the exporter writes for every network here: RoIAlign with aligned pixels is new in 16."""

LARGEST_CONSTANT = 2**26
"""Numbers of a constant that is computed when a file is written: those of any layer's weights."""


@dataclass(frozen=True)
class Job:
    """What a writer is asked for.

    Args:
        program: what the file is to hold.
        example: ``[B, 3, H, W]``.
        sizes: which sizes it is to take.
        precision: of its arithmetic.
        onnx: how an ONNX file is written.
        metadata: what the file says of itself.
    """

    program: Program
    example: Tensor
    sizes: Sizes
    precision: Precision
    onnx: OnnxOptions
    metadata: Mapping[str, str]

    @property
    def free(self) -> dict[int, str]:
        """The dimensions of the input that may vary, by name."""
        batch = {} if isinstance(self.program, DetectorProgram) else {0: "batch"}
        return batch | ({2: "height", 3: "width"} if self.sizes == "image" else {})


def write_onnx(job: Job, file: Path) -> None:
    """An ONNX file with all weights inside.

    By the exporter that records a run (``dynamo=False``): torch.export does not take detectors, whose steps depend on
    how many boxes there are. For networks that both take, the files run equally fast.
    """
    onnx = needed("onnx")
    free: dict[str, dict[int, str]] = {"images": job.free}
    for name in job.program.names:
        free[name] = {0: "objects"} if isinstance(job.program, DetectorProgram) else {0: "batch"}
    ours = kernels.recorded("acmix" if job.precision == "int8" else "acmix_layer")
    with _recording(job), ours if job.onnx.operators == "convattn" else nullcontext():
        torch.onnx.export(
            job.program,
            (job.example,),
            file,
            dynamo=False,
            input_names=["images"],
            output_names=list(job.program.names),
            dynamic_axes=free,
            opset_version=job.onnx.opset,
            custom_opsets={kernels.DOMAIN: 1} if job.onnx.operators == "convattn" else None,
        )
    model = _folded(onnx.load(file))
    onnx.helper.set_model_props(model, dict(job.metadata))
    if job.precision == "float16":
        halved = needed("onnxruntime.transformers.float16")
        model = halved.convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    onnx.save(model, file)


def _folded(model: Any) -> Any:
    """An ONNX model whose constants are tables and not steps, so that quantisation finds the weights of every layer.

    ``onnxscript.optimizer.optimize`` does more, and loses constants of detectors' branches.
    """
    ir, optimizer = needed("onnx_ir", install="onnxscript"), needed("onnxscript.optimizer", install="onnxscript")
    program, level = rewritten(ir.serde.deserialize_model(model)), logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # it tells of each step that it leaves
        optimizer.fold_constants(program, input_size_limit=LARGEST_CONSTANT, output_size_limit=LARGEST_CONSTANT)
    finally:
        logging.root.setLevel(level)
    optimizer.remove_unused_nodes(program)
    return ir.serde.serialize_model(program)


def write_openvino(job: Job, file: Path) -> None:
    """OpenVINO's pair of files, ``.xml`` and ``.bin``; float16 halves the weights, bfloat16 is how it is computed.

    Its runtime reads the ONNX file itself. Its converter from torch would send a report of its use to its makers.
    """
    openvino = needed("openvino")
    onnx_file = file.with_suffix(".onnx")
    write_onnx(replace(job, precision="float32"), onnx_file)
    core = openvino.Core()
    if job.onnx.operators == "convattn":
        core.add_extension(openvino_operators())
    model = core.read_model(onnx_file)
    for name, value in job.metadata.items():
        model.set_rt_info(value, [RUN, name])
    openvino.save_model(model, file, compress_to_fp16=job.precision == "float16")
    onnx_file.unlink()


def write_program(job: Job, file: Path) -> None:
    """A program of ``torch.export``, in standard operators alone."""
    if isinstance(job.program, DetectorProgram):
        raise UserError(
            "torch.export does not take a detector, whose steps depend on how many boxes there are; "
            "export it to onnx or torchscript"
        )
    free = dict.fromkeys(job.free, torch.export.Dim.DYNAMIC)
    example = job.example if len(job.example) > 1 else torch.cat([job.example] * 2)  # a batch of one would be fixed
    with ops.backend("portable"), torch.no_grad():
        program = torch.export.export(job.program, (example,), dynamic_shapes=(free,))
    torch.export.save(program, file, extra_files={TORCH_METADATA: json.dumps(dict(job.metadata))})


def write_torchscript(job: Job, file: Path) -> None:
    """A recorded program for ``torch.jit.load``, in Python or C++."""
    _traced(job).save(str(file), _extra_files={TORCH_METADATA: json.dumps(dict(job.metadata))})


def write_coreml(job: Job, file: Path) -> None:
    """A CoreML package; only macOS runs it."""
    coremltools: Any = needed("coremltools", install="coremltools")
    if job.free and job.sizes == "image":
        raise UserError("a CoreML file takes one size of image: leave --dynamic out")
    kind = coremltools.precision.FLOAT16 if job.precision == "float16" else coremltools.precision.FLOAT32
    inputs = [coremltools.TensorType("images", shape=tuple(job.example.shape))]
    model = coremltools.convert(_traced(job), inputs=inputs, compute_precision=kind)
    model.user_defined_metadata.update(job.metadata)
    model.save(str(file))


def _traced(job: Job) -> Any:
    with _recording(job), torch.no_grad():
        return torch.jit.trace(job.program, (job.example,), check_trace=False)


@contextmanager
def _recording(job: Job) -> Iterator[None]:
    """How a run is recorded: sizes that the file fixes are numbers in it.

    The exporters' warnings are about how they work; the comparison afterwards finds what is wrong.
    """
    with warnings.catch_warnings(), fixed_sizes() if job.sizes == "batch" else nullcontext():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: the end of its name.
        write: makes it.
        precisions: what it may hold.
    """

    suffix: str
    write: Callable[[Job, Path], None]
    precisions: tuple[Precision, ...] = ("float32",)


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", write_onnx, ("float32", "float16", "int8")),
    "openvino": Format(".xml", write_openvino, ("float32", "float16", "bfloat16")),
    "torch-export": Format(".pt2", write_program),
    "torchscript": Format(".torchscript", write_torchscript),
    "coreml": Format(".mlpackage", write_coreml, ("float32", "float16")),
}
