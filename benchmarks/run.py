"""How anything is measured: in a process of its own, on a machine that is quiet or said to be busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from benchmarks.machine import environment, now
from benchmarks.quiet import require_quiet
from benchmarks.record import Environment, Isa, Record, from_json


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all measurements are asked for.

    Args:
        batch: images.
        dtype: by name.
        device: by name.
        rounds: at most.
        threads: torch's.
        isa: the most that may be used.
        allow_busy: measure on a busy machine, and say so.
    """

    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 40
    threads: int = 1
    isa: Isa = "default"
    allow_busy: bool = False


def record_of(function: Callable[..., str], run: Run, on_progress: OnProgress = silent, **more: Any) -> Record:
    """The record that a function writes as JSON, in a fresh process, of the fields of a run.

    Raises:
        UserError: what was asked for is not there, or the machine is busy.
        RuntimeError: the process failed.
    """
    return from_json(call_fresh(function, {"run": asdict(run), **more}, Process(run.threads, run.isa), on_progress))


def require_quiet_machine(run: Run, on_progress: OnProgress) -> tuple[str, Environment]:
    """Time and place of a measurement that is about to begin.

    Raises:
        UserError: the machine is busy.
    """
    on_progress(0.0, "is the machine quiet?")
    where = environment(torch.get_num_threads(), isa=run.isa, device=run.device)
    return now(), require_quiet(where, run.device, run.allow_busy)
