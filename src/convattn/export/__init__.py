"""Networks as files for other runtimes: onnxruntime, OpenVINO, torch.export, TorchScript, CoreML."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from convattn.errors import UserError
from convattn.export.comparison import TOLERANCE, difference, latency_ms
from convattn.export.kernels import onnxruntime_library
from convattn.export.openvino_extension import openvino_operators
from convattn.export.packages import reason
from convattn.export.program import DetectorProgram, answers, program_of, refusals_named
from convattn.export.quantization import quantize
from convattn.export.report import ExportReport, OnnxOptions, Operators, Precision, Sizes
from convattn.export.runtime import OPENERS, RUN, RuntimeDetector, batcher_options, open_exported
from convattn.export.writers import FORMATS, OPSETS, Job
from convattn.layers._checks import check_network

__all__ = [
    "FORMATS",
    "ExportReport",
    "OnnxOptions",
    "export",
    "onnxruntime_library",
    "open_exported",
    "openvino_operators",
]

STANDARD = OnnxOptions()

OF_OUR_OPERATORS: Mapping[str, tuple[Precision, ...]] = {
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "float16"),
}
"""The formats that hold operators of ours, and in which precisions."""


def export(
    model: nn.Module,
    file: str | Path,
    example: Tensor,
    *,
    precision: Precision = "float32",
    sizes: Sizes | None = None,
    metadata: Mapping[str, str] | None = None,
    calibration: Sequence[Tensor] = (),
    onnx: OnnxOptions = STANDARD,
) -> ExportReport:
    """Write a network for another runtime, run the file there, and compare it with PyTorch.

    The network is folded first (:func:`convattn.optimize`); the operators become standard ones. The file appears only
    when its answers agree.

    Args:
        model: a classifier, a segmenter or a detector of ours or of torchvision, or any network from one tensor to
            tensors. It is left as it is.
        file: its end says what it is: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (torch.export), ``.torchscript``,
            ``.mlpackage`` (CoreML).
        example: real images ``[B, 3, H, W]`` as the network takes them; for a detector values of 0 to 1, of the size
            that it works at. They are what the comparison is made on.
        precision: ``"float16"`` for ONNX, OpenVINO and CoreML; ``"bfloat16"`` for OpenVINO, whose processor must have
            it, else it computes in float32; ``"int8"`` for ONNX.
        sizes: ``"batch"``: the file takes any number of images of the example's size. ``"image"``: also any size.
            None: ``"image"`` for detectors, which see every size, else ``"batch"``.
        metadata: is written into the file, beside how it is run.
        calibration: images ``[B, 3, H, W]`` that set the ranges of ``"int8"``.
        onnx: how an ONNX file is written.

    Returns:
        The differences and latencies; ``print`` shows them.

    Raises:
        UserError: the network does not take the example, the runtime does not take the network, a package is missing,
            or the file disagrees with PyTorch. No file is left then.
        TypeError: a compiled, scripted or exported network.

    Example:
        >>> import tempfile, timm, torch
        >>> import convattn
        >>> net = timm.create_model("acmix_resnet14", num_classes=3, channels=(8, 8, 16, 16))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = convattn.export(net, f"{folder}/net.torchscript", torch.randn(2, 3, 32, 32))
        >>> report.difference < 1e-4
        True
    """
    path = Path(file)
    check_network(model, "export")
    name = _format_of(path, precision, onnx)
    _check_example(example)
    model = copy.deepcopy(model).eval()
    program = program_of(model, example, onnx.operators)
    detects = isinstance(program, DetectorProgram)
    how = {"outputs": program.names, "precision": precision} | ({"batcher": batcher_options(model)} if detects else {})
    job = Job(
        program=program,
        example=example[:1] if detects else example,
        sizes=sizes or ("image" if detects else "batch"),
        precision=precision,
        onnx=onnx,
        metadata={**(metadata or {}), RUN: json.dumps(how)},
    )
    if precision == "int8" and not calibration:
        raise UserError("int8 needs images to set its ranges: give some as calibration")
    with _folder_beside(path) as folder:
        written = folder / path.name
        _write(name, job, written, calibration)
        report = _compared(model, job, written, path)
        for part in folder.iterdir():
            os.replace(part, path.parent / part.name)
    return report


def _format_of(path: Path, precision: str, onnx: OnnxOptions) -> str:
    """The name of the format, after a check of what it is to hold."""
    name = next((name for name, one in FORMATS.items() if one.suffix == path.suffix), None)
    if name is None:
        ends = ", ".join(f"{one.suffix} ({name})" for name, one in FORMATS.items())
        raise UserError(f"{path}: the end of the name says what to write: {ends}")
    for what, value, known in (("precision", precision, Precision), ("operators", onnx.operators, Operators)):
        if value not in get_args(known):
            raise UserError(f"{what} must be one of {', '.join(get_args(known))}, got {value!r}")
    if precision not in FORMATS[name].precisions:
        able = ", ".join(other for other, one in FORMATS.items() if precision in one.precisions)
        raise UserError(f"{name} files are not written in {precision} here; take {able}")
    if onnx.opset not in OPSETS:
        raise UserError(f"opset {onnx.opset}: the operators need {OPSETS[0]} to {OPSETS[-1]}; give one of these")
    if onnx.operators == "convattn" and precision not in OF_OUR_OPERATORS.get(name, ()):
        able = " and ".join(f"{other} files of {' or '.join(some)}" for other, some in OF_OUR_OPERATORS.items())
        raise UserError(f"convattn's own operators go into {able}, got {name} of {precision}; take standard operators")
    return name


def _check_example(example: Tensor) -> None:
    if not isinstance(example, Tensor) or example.dim() != 4 or not example.numel():
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise UserError(f"the example must be images [B, C, H, W], one at least, got {found}")


class _folder_beside:
    """A folder on the disk of a file to be; gone afterwards, with all that was not moved out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; name another place") from error
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(name: str, job: Job, file: Path, calibration: Sequence[Tensor]) -> None:
    try:
        FORMATS[name].write(job, file)
        if job.precision == "int8":
            quantize(file, calibration)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # each exporter has kinds of its own
        said = reason(error)
        why = said.partition(" Please feel free")[0].rstrip(".")  # torch's exporter goes on with its whole graph
        network = type(job.program.network).__name__
        other = "leave --dynamic out, or try another format" if job.sizes == "image" else "try another format"
        raise UserError(f"{name} does not take this network ({network}): {why}; {other}") from error


def _compared(model: nn.Module, job: Job, written: Path, final: Path) -> ExportReport:
    """Run the file beside the network as it came, on the example and on other sizes that the file is to take.

    Raises:
        UserError: their answers differ by more than rounding explains.
    """
    size = (int(job.example.shape[2]), int(job.example.shape[3]))
    report = ExportReport(final, job.precision, size, job.sizes)
    if written.suffix not in OPENERS:
        return replace(report, note="not run: this machine has no runtime for it")
    program, first, detects = job.program, job.example[:1], isinstance(job.program, DetectorProgram)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bfloat16"):
        torch_latency = latency_ms(lambda: program(first))
    file, _ = open_exported(written)
    worst, some = 0.0, False
    for images in _cases(job):
        with refusals_named(images):
            expected = answers(model, images, detects=detects)
        some |= not isinstance(expected, dict) or len(expected["boxes"]) > 0
        try:
            found = answers(file, images, detects=detects)
        except UserError as error:
            raise UserError(f"{final.name}: {_refused(job, images, error)}") from error
        worst = max(worst, difference(expected, found))
    if not worst <= TOLERANCE.get(job.precision, float("inf")):
        raise UserError(
            f"{final.name}: its answers differ from PyTorch's by {worst:.1e} of the largest, rounding explains "
            f"{TOLERANCE[job.precision]:.0e}; the file was not kept: try another format or precision"
        )
    runtime = file.model if isinstance(file, RuntimeDetector) else file
    return replace(
        report,
        difference=worst if some else None,
        latency_ms=latency_ms(lambda: runtime(first)),
        torch_latency_ms=torch_latency,
        note="" if some else "not compared: the detector finds nothing on these images; give others that show objects",
    )


def _refused(job: Job, images: Tensor, error: UserError) -> str:
    """Why the file was not kept whose runtime does not take some images."""
    why = reason(error.__cause__ or error)
    size = "x".join(map(str, images.shape))
    if job.sizes == "image":
        return f"no file of this network takes images of any size: on {size} it fails ({why}); leave --dynamic out"
    return f"the file does not run on {size}: {why}; try another format"


def _cases(job: Job) -> list[Tensor]:
    """The example, one image of it, and where the file takes any size, that image smaller and of another shape."""
    first = job.example[:1]
    cases = [job.example] if len(job.example) == 1 else [job.example, first]
    if job.sizes == "image":
        other = [max(32, side * part // 64 * 8) for side, part in zip(first.shape[2:], (7, 6), strict=True)]
        cases.append(functional.interpolate(first, other, mode="bilinear", antialias=True))
    return cases
