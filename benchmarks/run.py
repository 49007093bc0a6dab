"""How anything is measured: in a process of its own, on a machine that is quiet or said to be busy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import product
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

    def facts(self, *names: str) -> dict[str, str | int | float]:
        """What was asked for under these names, for a record."""
        return {name: getattr(self, name) for name in names}


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


def begun(run: Run) -> tuple[str, Environment]:
    """Time and place of a measurement whose parts run in processes of their own, as a fresh one finds the machine.

    Raises:
        UserError: the machine is busy.
    """
    asked = {field.name: getattr(run, field.name) for field in fields(Run)}
    found = call_fresh(begin_here, {"run": asked}, Process(run.threads, run.isa))
    return found["taken"], Environment(**found["environment"])


def begin_here(run: dict[str, Any], on_progress: OnProgress = silent) -> dict[str, Any]:
    """Time and place of a measurement that is about to begin, from the fields of a :class:`Run`."""
    taken, where = require_quiet_machine(Run(**run), on_progress)
    return {"taken": taken, "environment": asdict(where)}


def rounds_of(rounds: int, names: Collection[str], on_progress: OnProgress) -> Iterator[tuple[int, str]]:
    """Yield the number of a round and a name, all names in every round, telling how far that is.

    Example:
        >>> list(rounds_of(2, ["a", "b"], silent))
        [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b')]
    """
    for done, (number, name) in enumerate(product(range(rounds), names)):
        on_progress(done / (rounds * len(names)), name)
        yield number, name
