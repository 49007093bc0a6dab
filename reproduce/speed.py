"""The speed columns: networks of a table timed in turns on this machine, by :mod:`benchmarks`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import convattn.models  # noqa: F401  registers the networks
from benchmarks import gate
from benchmarks.backends import FALLBACK, only
from benchmarks.fresh import Process, Tell, call_fresh, silent
from benchmarks.machine import environment, now
from benchmarks.quiet import require_quiet
from benchmarks.record import TIME, Check, Record, from_json, to_json
from benchmarks.timing import Effort, Timed, clock_for, in_turns
from convattn import detection
from convattn.tasks.run_folder import write_json
from reproduce.dense import DETECTION_CLASSES
from reproduce.entries import Entry, Part

TOLERANCE = 1e-3
"""Largest difference of the outputs from those in float64 without our kernels, over the largest output."""


@dataclass(frozen=True)
class SpeedRun:
    """What is timed.

    Args:
        subjects: ``"<network>:<option>=<value>"`` of its operator, or ``"retinanet:<backbone>"``.
        size: height and width of the images.
        batch: images at a time.
        device: by name.
        rounds: at most.
        threads: torch's.
        allow_busy: time on a busy machine, and say so.
    """

    subjects: tuple[str, ...]
    size: int
    batch: int
    device: str = "cpu"
    rounds: int = 20
    threads: int = 1
    allow_busy: bool = False


class Forward(nn.Module):
    """A RetinaNet's backbone, pyramid and head as one output; which boxes are kept is not timed.

    Args:
        detector: of :func:`convattn.detection.retinanet`.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> all outputs in a row, ``[N]``."""
        return torch.cat([part.flatten() for part in _tensors(self.head(list(self.backbone(images).values())))])


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
        return
    for part in found.values() if isinstance(found, dict) else found:
        yield from _tensors(part)


def build(subject: str) -> nn.Module:
    """The network of a row, as trained: folded, the four shifts would be one.

    Example:
        >>> type(build("acmix_swin_tiny:shift=tensor")).__name__
        'SwinTransformer'
    """
    torch.manual_seed(0)
    name, _, option = subject.partition(":")
    if name == "retinanet":
        return Forward(detection.retinanet(option, DETECTION_CLASSES))
    key, _, value = option.partition("=")
    return timm.create_model(name, operator_args={key: value})


def measure(entry: Entry, part: Part, run: SpeedRun, out: Path, tell: Tell = silent) -> Record:
    """Time a table's rows in a fresh process and write the record.

    Raises:
        UserError: the machine is busy.
        RuntimeError: the process failed.
    """
    plain = call_fresh(times_here, {"run": asdict(run)}, Process(run.threads), tell)
    record = from_json(json.dumps(plain))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{entry.id}-{record.taken[:19].replace(':', '')}.json", json.loads(to_json(record)))
    return record


def times_here(run: dict[str, Any], tell: Tell = silent) -> Any:
    """Check and time in this process; a record as plain values."""
    asked, taken = SpeedRun(**run), now()
    where = environment(torch.get_num_threads(), device=asked.device)
    tell(0.0, "is the machine quiet?")
    where = require_quiet(where, asked.device, asked.allow_busy)
    jobs, checks = {}, {}
    for number, subject in enumerate(asked.subjects):
        tell(0.05 + 0.35 * number / len(asked.subjects), f"comparing {subject} with the reference")
        jobs[subject], checks[subject] = _checked(subject, asked)
    times = in_turns(
        jobs,
        clock_for(asked.device),
        Effort(asked.rounds, seconds=40.0),
        lambda done, what: tell(0.4 + 0.6 * done, what),
    )
    case: dict[str, str | int | float] = {
        "models": ",".join(asked.subjects),
        "base": asked.subjects[0],
        "size": asked.size,
        "batch": asked.batch,
        "dtype": "float32",
        "rounds": asked.rounds,
    }
    results = {name: {TIME: series} for name, series in times.items()}
    return json.loads(to_json(Record("model", taken, where, case, results, checks)))


def _checked(subject: str, run: SpeedRun) -> tuple[Timed, Check]:
    """A network as the call to be timed, and whether it computes what it computes in float64 without our kernels."""
    network = build(subject).eval()
    x = torch.randn(1, 3, run.size, run.size)
    with torch.inference_mode(), only(FALLBACK):
        expected = network.double()(x.double())
    network = network.float().to(run.device).to(memory_format=torch.channels_last)
    images = x.expand(run.batch, -1, -1, -1).to(run.device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        error = gate.error(network(x.to(run.device)), expected.to(run.device))
    if error <= TOLERANCE:
        check = Check("right", error, TOLERANCE)
    else:
        note = f"differs from the reference by {error:.1e}"
        check = Check("wrong", error if math.isfinite(error) else None, TOLERANCE, note)
    return Timed(lambda: network(images), torch.inference_mode), check
