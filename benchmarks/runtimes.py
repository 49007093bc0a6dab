"""Measures exported networks in other runtimes: each file in a process of its own, in turns.

The runtimes' threads wait by spinning, so two networks in one process would slow each other.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from benchmarks.network import NetworkRun, build, inference, require_model
from benchmarks.record import TIME, Check, Record, Series, from_json, to_json
from benchmarks.run import require_quiet_machine
from convattn.export import FORMATS, OnnxOptions, export, open_exported
from convattn.export.comparison import TOLERANCE, latency_ms
from convattn.export.report import Operators, Precision

Runtime: TypeAlias = Literal["onnxruntime", "openvino"]
_SUFFIXES: dict[Runtime, str] = {"onnxruntime": FORMATS["onnx"].suffix, "openvino": FORMATS["openvino"].suffix}

IN_PYTORCH = "@pytorch"
"""After a network's name: the folded network in PyTorch, not a file."""

SECONDS = 1.5
"""Of timing in each process."""
CALIBRATION_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class RuntimeRun(NetworkRun):
    """What is asked for; ``dtype`` is the file's precision, a :data:`convattn.export.report.Precision`.

    Args:
        runtime: which.
        operators: what files are made of; see :class:`convattn.export.OnnxOptions`. Of plain networks none is
            ours.
    """

    runtime: Runtime = "onnxruntime"
    operators: Operators = "standard"


def measure(run: RuntimeRun, on_progress: OnProgress = silent) -> Record:
    """Export networks, compare the files with PyTorch, and time them.

    Raises:
        UserError: an unknown network, a runtime that is not installed, or a busy machine.
        RuntimeError: a process failed.
    """
    for name in run.subjects:
        require_model(name.removesuffix(IN_PYTORCH))
    process = Process(run.threads, run.isa)
    with tempfile.TemporaryDirectory() as folder:
        times: dict[str, list[float]] = {name: [] for name in run.subjects}
        checks = {}
        for place, name in enumerate(run.subjects):
            on_progress(0.4 * place / len(run.subjects), f"exporting {name}")
            checks[name] = Check(**call_fresh(export_here, _arguments(run, name, folder), process))
        begun = from_json(call_fresh(begin_here, {"run": asdict(run)}, process))
        for turn in range(run.rounds):
            for name in run.subjects:
                on_progress(0.4 + 0.6 * turn / run.rounds, f"timing {name}")
                times[name].append(call_fresh(time_here, _arguments(run, name, folder), process))
    case: dict[str, str | int | float] = {
        "models": ",".join(run.models),
        "base": run.base,
        "size": run.size,
        "batch": run.batch,
        "dtype": run.dtype,
        "runtime": run.runtime,
        "operators": run.operators,
        "rounds": run.rounds,
    }
    results = {name: {TIME: Series("s", tuple(values))} for name, values in times.items()}
    return Record("runtime", begun.taken, begun.environment, case, results, checks)


def _arguments(run: RuntimeRun, name: str, folder: str) -> dict[str, Any]:
    return {"run": asdict(run), "name": name, "folder": folder}


def begin_here(run: dict[str, Any], on_progress: OnProgress = silent) -> str:
    """Time and place of a measurement that is about to begin, as a record without results of its own."""
    asked = RuntimeRun(**run)
    taken, where = require_quiet_machine(asked, on_progress)
    nothing = {"nothing": {TIME: Series("s", (0.0,))}}
    case: dict[str, str | int | float] = {"batch": 1, "channels": 1, "height": 1, "width": 1, "dtype": asked.dtype}
    return to_json(Record("memory", taken, where, case, nothing))


def export_here(run: dict[str, Any], name: str, folder: str, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Write a network's file; its difference from PyTorch."""
    asked = RuntimeRun(**run)
    if name.endswith(IN_PYTORCH):
        return {"state": "right", "note": "not a file: the folded network in PyTorch"}
    precision: Precision = asked.dtype  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, asked.size, asked.size, generator=generator)
    calibration = [images[:1] for _ in range(CALIBRATION_IMAGES)] if precision == "int8" else []
    report = export(
        build(name),
        _file(asked, name, folder),
        images,
        precision=precision,
        onnx=OnnxOptions(operators=asked.operators),
        calibration=calibration,
    )
    return {"state": "right", "error": report.difference, "tolerance": TOLERANCE.get(precision, 1.0)}


def time_here(run: dict[str, Any], name: str, folder: str, on_progress: OnProgress = silent) -> float:
    """The median time of a network's file on random images, in seconds."""
    asked = RuntimeRun(**run)
    images = torch.randn(asked.batch, 3, asked.size, asked.size)
    if name.endswith(IN_PYTORCH):
        network = inference(build(name.removesuffix(IN_PYTORCH)), asked)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        network, _ = open_exported(_file(asked, name, folder))
    with torch.inference_mode():
        return latency_ms(lambda: network(images), seconds=SECONDS) / 1e3


def _file(run: RuntimeRun, name: str, folder: str) -> Path:
    return Path(folder) / f"{name.replace(':', '_').replace('=', '_')}{_SUFFIXES[run.runtime]}"
