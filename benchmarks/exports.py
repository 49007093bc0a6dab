"""Every network and head in every format of export: whether it is written, runs and agrees, and how long it takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import convattn.models  # noqa: F401  registers the networks
from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from convattn import detection, segmentation
from convattn.errors import UserError
from convattn.export import OnnxOptions, export
from convattn.publishing import markdown_table

PAGE = "exports.md"
RECORD = "exports/networks.json"
SIZE = 64

NARROW: Mapping[str, Any] = {"channels": (16, 16, 24, 32)}
_SAN: Mapping[str, Any] = {"layers": (1, 1, 1, 1, 1), "widths": (16, 16, 32, 32, 32)}
_SWIN: Mapping[str, Any] = {"embed_dim": 12, "depths": (1, 2, 1, 1)}
CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"{kind}_resnet14": NARROW
        for kind in (
            *("conv", "acmix", "sasa", "pssa", "xvolution", "multiconv", "involution", "lr", "aa", "bot", "halo"),
            *("lambda", "global"),
        )
    },
    **dict.fromkeys(("swin_tiny", "conv_swin_tiny", "acmix_swin_tiny"), _SWIN),
    "pvt_v1_tiny": {},
    "acmix_pvt_tiny": {},
    "deit_tiny": {"depth": 2},
    "acmix_deit_tiny": {"depth": 2},
    **dict.fromkeys(("san10", "pairwise_san10", "acmix_san10"), _SAN),
}
"""Every family, narrow and shallow: the operators are the same."""
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
SEGMENTERS = ("semantic_fpn", "upernet")
NETWORKS = (*CLASSIFIERS, *DETECTORS, *SEGMENTERS)
"""The rows of the table."""
FORMATS: Mapping[str, tuple[str, OnnxOptions]] = {
    "onnx": (".onnx", OnnxOptions()),
    "onnx, our operators": (".onnx", OnnxOptions(operators="convattn")),
    "openvino": (".xml", OnnxOptions()),
    "openvino, our operators": (".xml", OnnxOptions(operators="convattn")),
    "torch-export": (".pt2", OnnxOptions()),
    "torchscript": (".torchscript", OnnxOptions()),
}


@dataclass(frozen=True)
class Cell:
    """One network in one format.

    Args:
        network: its name.
        format: a key of :data:`FORMATS`.
        difference: from PyTorch's outputs; None where there is no file.
        ratio: its time over the folded network's in PyTorch, one thread.
        reason: why there is no file.
    """

    network: str
    format: str
    difference: float | None = None
    ratio: float | None = None
    reason: str = ""


def measure(record: Path, threads: int = 1, on_progress: OnProgress = silent) -> list[Cell]:
    """Export everything, each network in a process of its own; the record is written as it goes.

    Networks that the record has already are left out.
    """
    cells = read(record) if record.is_file() else []
    missing = [name for name in NETWORKS if name not in {cell.network for cell in cells}]
    for place, name in enumerate(missing):
        on_progress(place / len(missing), name)
        cells += [Cell(**one) for one in call_fresh(export_here, {"name": name}, Process(threads))]
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    return cells


def read(record: Path) -> list[Cell]:
    """The cells of a record.

    Raises:
        UserError: there is none.
    """
    try:
        return [Cell(**one) for one in json.loads(record.read_text(encoding="utf-8"))]
    except OSError as error:
        raise UserError(f"{record}: {error.strerror}; write it with: python -m benchmarks exports") from error


def export_here(name: str, on_progress: OnProgress = silent) -> list[dict[str, Any]]:
    """One network in every format."""
    torch.manual_seed(0)
    model = _build(name).eval()
    images = torch.rand(1 if name in DETECTORS else 2, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        return [
            asdict(_cell(name, kind, lambda suffix, onnx: export(model, f"{folder}/net{suffix}", images, onnx=onnx)))
            for kind in FORMATS
        ]


def _cell(name: str, kind: str, write: Callable[[str, OnnxOptions], Any]) -> Cell:
    try:
        report = write(*FORMATS[kind])
    except UserError as error:
        return Cell(name, kind, reason=str(error))
    return Cell(name, kind, report.difference, report.latency_ms / report.torch_latency_ms)


def _build(name: str) -> nn.Module:
    if name in DETECTORS:
        options: dict[str, Any] = {"backbone_args": {"channels": (8, 8, 16, 16)}, "channels": 16}
        options |= {"min_size": SIZE, "max_size": 96, "score_threshold": 0.0, "detections_per_image": 20}
        options |= {} if name == "retinanet" else {"fc_channels": 16}
        model: nn.Module = getattr(detection, name)("acmix_resnet14", 3, **options)
        for part, parameter in model.named_parameters():
            if "cls" in part and parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5)  # as drawn all scores are alike, and rounding would choose
        return model
    if name in SEGMENTERS:
        backbone = timm.create_model("acmix_resnet14", features_only=True, channels=(8, 8, 16, 16))
        small = {"pyramid_channels": 16, "channels": 16} if name == "semantic_fpn" else {"channels": 16}
        built: nn.Module = getattr(segmentation, name)(backbone, num_classes=3, **small)
        return built
    return timm.create_model(name, num_classes=3, **CLASSIFIERS[name])


def page(cells: list[Cell]) -> str:
    """The table as Markdown."""
    reasons: list[str] = []

    def shown(cell: Cell | None) -> str:
        if cell is None:
            return "not run"
        if cell.difference is None or cell.ratio is None:
            if cell.reason not in reasons:
                reasons.append(cell.reason)
            return f"no ({reasons.index(cell.reason) + 1})"
        return f"{cell.difference:.0e}, {cell.ratio:.1f}×"

    by_place = {(cell.network, cell.format): cell for cell in cells}
    names = {cell.network for cell in cells}
    rows = [[name, *(shown(by_place.get((name, kind))) for kind in FORMATS)] for name in NETWORKS if name in names]
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([HEAD, *markdown_table(["network", *FORMATS], rows), "", *numbered]).rstrip() + "\n"


HEAD = f"""# Every network in every format

<!-- written by `python -m benchmarks exports` from results/{RECORD} -->

Each cell has the largest difference from PyTorch's outputs, over the largest output, and the file's time over that of
the folded network in PyTorch, with one thread. The networks are narrow and shallow, on images of {SIZE}×{SIZE}: the
times say which formats suit which operators, not what a large network takes
([Benchmarks](benchmarks.md#other-runtimes)). Detectors and segmenters have an ACmix ResNet as backbone.
"""
