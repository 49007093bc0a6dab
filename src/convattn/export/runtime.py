"""An exported file as a module: what it answers has the form that the run's network gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.detection.images import ImageBatcher
from convattn.errors import UserError
from convattn.export.kernels import DOMAIN, has_runtimes_library, runtimes_library
from convattn.export.openvino_extension import has_our_operators, openvino_operators
from convattn.export.packages import needed, reason

RUN = "convattn_export"
"""Under which name a file's metadata say how it is run: its outputs, and how images come in and boxes go out."""

TORCH_METADATA = "convattn.json"
"""The extra file in torch's own formats that holds the metadata."""


KEPT_SIZES = 4
"""For how many sizes of images OpenVINO keeps its program of a file with our operators."""


@dataclass(frozen=True)
class Opened:
    """A file in its runtime.

    Args:
        run: ``[B, 3, H, W]`` -> the outputs in order.
        metadata: by name.
    """

    run: Callable[[Tensor], Sequence[Tensor]]
    metadata: dict[str, str]


class RuntimeModel(nn.Module):
    """A classifier's or segmenter's file: ``[B, 3, H, W]`` -> its output, or several in a tuple.

    Args:
        opened: the file in its runtime.
        path: of the file, for messages.
    """

    def __init__(self, opened: Opened, path: Path) -> None:
        super().__init__()
        self.opened, self.path = opened, path
        # who feeds a network asks its parameters where it is
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Any:
        """Run the file.

        Raises:
            UserError: it does not take images of that size.
        """
        try:
            outputs = list(self.opened.run(images))
        except Exception as error:  # each runtime has kinds of its own
            size, why = "x".join(map(str, images.shape)), reason(error)
            raise UserError(
                f"{self.path}: cannot run on images of {size}: {why}; give the size that it was exported for, or "
                "export it with --dynamic"
            ) from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class RuntimeDetector(nn.Module):
    """A detector's file: images of any size -> objects, as :class:`convattn.detection.detectors.RCNN`.

    Args:
        model: the file.
        names: of its outputs.
        batcher: how images are scaled.
    """

    def __init__(self, model: RuntimeModel, names: Sequence[str], batcher: ImageBatcher) -> None:
        super().__init__()
        self.model, self.names, self.batcher = model, tuple(names), batcher.eval()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Each ``[3, H, W]``, values of 0 to 1 -> boxes, scores, labels and masks for each image."""
        results = []
        for image in images:
            scaled = self.batcher.resize(image)[0]
            found = dict(zip(self.names, self.model(scaled[None]), strict=True))
            sizes = [(int(side.shape[-2]), int(side.shape[-1])) for side in (scaled, image)]
            results += self.batcher.postprocess([found], sizes[:1], sizes[1:])
        return results


def open_exported(path: Path, device: torch.device | None = None) -> tuple[nn.Module, dict[str, str]]:
    """A file that :func:`convattn.export` wrote as a module on the CPU, and its metadata.

    Raises:
        UserError: a file of another kind, one that its runtime cannot read, a missing package, or another device.
    """
    if device is not None and device.type != "cpu":
        raise UserError(f"{path}: exported files run on the CPU here, not on {device}; leave --device out")
    try:
        opened = OPENERS[Path(path).suffix](Path(path))
        how = json.loads(opened.metadata.get(RUN, "{}"))
    except (UserError, OSError):
        raise
    except Exception as error:  # each runtime has kinds of its own
        why = reason(error)
        raise UserError(f"{path}: cannot be opened: {why}; export it again with: convattn export") from error
    model = RuntimeModel(opened, path)
    if "batcher" not in how:
        return model, opened.metadata
    return RuntimeDetector(model, how["outputs"], ImageBatcher(**how["batcher"])), opened.metadata


def batcher_options(network: nn.Module) -> dict[str, Any]:
    """How a detector scales images, for :class:`ImageBatcher`; the file itself normalises and pads."""
    batcher: Any = network.transform
    channels = len(batcher.image_mean)
    sizes = list(batcher.min_size) or None
    return {"min_size": sizes, "max_size": batcher.max_size, "mean": [0.0] * channels, "std": [1.0] * channels}


def session_options() -> Any:
    """What onnxruntime opens every file with: our operators where they were built, as many threads as torch."""
    options = needed("onnxruntime").SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    if has_runtimes_library():
        options.register_custom_ops_library(str(runtimes_library()))
    return options


def _open_onnx(path: Path) -> Opened:
    runtime = needed("onnxruntime")
    try:
        session = runtime.InferenceSession(path.read_bytes(), session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:
        if f"{DOMAIN}:" in str(error):  # one of our operators, unknown
            runtimes_library()
        raise
    name, half = session.get_inputs()[0].name, session.get_inputs()[0].type == "tensor(float16)"

    def run(images: Tensor) -> list[Tensor]:
        given = images.half() if half else images
        return [torch.from_numpy(found) for found in session.run(None, {name: given.cpu().numpy()})]

    return Opened(run, dict(session.get_modelmeta().custom_metadata_map))


def _open_openvino(path: Path) -> Opened:
    openvino = needed("openvino")
    core, ours = openvino.Core(), has_our_operators(path)
    if ours:
        core.add_extension(openvino_operators())
    model = core.read_model(path)
    found: Any = dict(model.get_rt_info().items()).get(RUN, {})
    metadata = {name: value.astype(str) for name, value in found.items()}
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    # its own choice is bfloat16 where the processor has it, also for a file in float32
    half = json.loads(metadata.get(RUN, "{}")).get("precision") == "bfloat16"
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if half else "f32"

    taken = model.inputs[0].get_partial_shape()

    @lru_cache(maxsize=KEPT_SIZES)
    def compiled(shape: tuple[int, ...] | None) -> Any:
        if shape is None:
            return core.compile_model(model, "CPU", settings)
        if not taken.compatible(openvino.PartialShape(list(shape))):
            raise RuntimeError(f"its images are {taken}")
        fixed = model.clone()
        fixed.reshape(shape)
        return core.compile_model(fixed, "CPU", settings)

    if not ours:
        compiled(None)

    def run(images: Tensor) -> list[Tensor]:
        # only where all sizes are known, maps go to our operators and back without a copy
        program = compiled(tuple(images.shape) if ours else None)
        found = program(images.cpu().numpy())
        return [torch.from_numpy(found[output].copy()) for output in program.outputs]

    return Opened(run, metadata)


def _open_program(path: Path) -> Opened:
    extra = {TORCH_METADATA: ""}
    program = torch.export.load(path, extra_files=extra).module()
    return Opened(lambda images: _tuple(program(images)), json.loads(extra[TORCH_METADATA]))


def _open_torchscript(path: Path) -> Opened:
    extra = {TORCH_METADATA: ""}
    program = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    text: Any = extra[TORCH_METADATA]
    return Opened(lambda images: _tuple(program(images)), json.loads(text))


def _tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


OPENERS: dict[str, Callable[[Path], Opened]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_program,
    ".torchscript": _open_torchscript,
}
"""By the ends of the files' names."""
