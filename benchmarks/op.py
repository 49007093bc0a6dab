"""Measures an operator case: everything is checked, then timed in turns, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks import floor, gate
from benchmarks.backends import Absent
from benchmarks.cases import Mode, find_cases
from benchmarks.fresh import Process, Tell, call_fresh, silent
from benchmarks.machine import environment, now
from benchmarks.problems import BASE, Problem, Runner, Setting, pose
from benchmarks.quiet import require_quiet
from benchmarks.record import TIME, Check, Floor, Isa, Record, Verdict, from_json, to_json
from benchmarks.timing import Effort, captured, clock_for, in_turns
from convattn.errors import UserError


@dataclass(frozen=True)
class OpRun:
    """What is asked for.

    Args:
        case: a name, see :func:`benchmarks.cases.find_cases`.
        mode: ``"forward"`` or ``"train"``.
        batch: images.
        dtype: by name.
        device: by name.
        compiled: compile too.
        subjects: those to measure beside the base; empty for all.
        rounds: at most.
        threads: torch's.
        isa: the most that may be used.
        allow_busy: measure on a busy machine, and say so.
    """

    case: str
    mode: Mode = "forward"
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    compiled: bool = False
    subjects: tuple[str, ...] = field(default=())
    rounds: int = 40
    threads: int = 1
    isa: Isa = "default"
    allow_busy: bool = False


def measure(run: OpRun, tell: Tell = silent) -> Record:
    """Measure one case in a fresh process.

    Raises:
        UserError: no such case, or a busy machine.
        RuntimeError: the process failed.
    """
    find_cases([run.case])
    plain = call_fresh(measure_here, {"run": asdict(run)}, Process(run.threads, run.isa), tell)
    return from_json(json.dumps(plain))


def measure_here(run: dict[str, Any], tell: Tell = silent) -> Any:
    """Measure one case, from the fields of an :class:`OpRun`, in this process; a record as plain values."""
    asked = OpRun(**run)
    case, taken = find_cases([asked.case])[0], now()
    where = environment(torch.get_num_threads(), isa=asked.isa, device=asked.device)
    tell(0.0, "is the machine quiet?")
    where = require_quiet(where, asked.device, asked.allow_busy)
    dtype: torch.dtype = getattr(torch, asked.dtype)
    problem = pose(case, Setting(asked.batch, asked.mode, dtype, asked.device, asked.compiled))
    tell(0.02, "comparing with the reference")
    jobs, checks = checked(problem, asked.mode, dtype, wanted(problem, asked.subjects))
    if BASE not in jobs:
        raise RuntimeError(f"the base itself fails: {checks[BASE].note}")
    clock = clock_for(asked.device)
    runs = {name: captured(job.timed, asked.device) for name, job in jobs.items()}
    times = in_turns(runs, clock, Effort(asked.rounds), lambda part, what: tell(0.05 + 0.9 * part, what))
    tell(0.97, "bandwidth and peak")
    least = Floor(problem.bytes, problem.flops, floor.bandwidth(asked.device), floor.peak(asked.device, dtype))
    facts: dict[str, str | int | float] = {
        "case": case.name,
        "mode": asked.mode,
        "batch": asked.batch,
        "dtype": asked.dtype,
        "base": BASE,
        "ours": ",".join(problem.ours),
        "rounds": asked.rounds,
    }
    results = {name: {TIME: series} for name, series in times.items()}
    return json.loads(to_json(Record("op", taken, where, facts, results, checks, least)))


def wanted(problem: Problem, subjects: tuple[str, ...]) -> dict[str, Callable[[], Runner]]:
    """The makers of the base and of these subjects; none named: all.

    Raises:
        UserError: a subject that the case has not.
    """
    makers = problem.makers
    unknown = sorted(set(subjects) - set(makers))
    if unknown:
        raise UserError(f"no subject {', '.join(unknown)} in this case; it has {', '.join(makers)}")
    return {name: make for name, make in makers.items() if not subjects or name in (BASE, *subjects)}


def checked(
    problem: Problem, mode: Mode, dtype: torch.dtype, makers: dict[str, Callable[[], Runner]]
) -> tuple[dict[str, gate.Job], dict[str, Check]]:
    """The subjects that are right, ready to be timed, and the verdict on every one.

    Args:
        problem: what is computed.
        mode: forward, or with gradients.
        dtype: of the subjects.
        makers: the subjects, the base first.
    """
    jobs, checks = {}, {}
    grad, tolerance = None, gate.TOLERANCES[dtype]
    reference: gate.Reference | None = None
    for name, make in makers.items():
        if name in problem.off:
            checks[name] = Check("absent", None, tolerance, problem.off[name])
            continue
        try:
            runner = make()
            if reference is None:  # the base comes first, and all outputs are of its shape
                grad = gate.make_gradient(runner.run(*problem.inputs).detach(), mode)
                reference = gate.Reference(problem.inputs, grad)
            job = gate.prepare(runner, problem.inputs, grad)
            checks[name] = gate.check(runner, job, reference, tolerance)
        except Absent as error:
            checks[name] = Check("absent", None, tolerance, str(error))
        except Exception as error:  # whatever a subject raises is its verdict, not the end of the others
            state: Verdict = "wrong" if name in problem.ours else "absent"
            checks[name] = Check(state, None, tolerance, f"{type(error).__name__}: {error}".splitlines()[0][:300])
        if checks[name].state == "right":
            jobs[name] = job
    return jobs, checks
