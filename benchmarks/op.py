"""Measures an operator case: everything is checked, then timed in turns, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import floor, gate
from benchmarks.backends import Absent
from benchmarks.cases import Mode, find_cases
from benchmarks.fresh import OnProgress, silent
from benchmarks.problems import BASE, Problem, Runner, Setting, pose
from benchmarks.record import TIME, Check, Floor, Record, Verdict, to_json
from benchmarks.run import Run, record_of, require_quiet_machine
from benchmarks.timing import Effort, captured, clock_for, interleaved
from convattn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OpRun(Run):
    """What is asked for.

    Args:
        case: a name, see :func:`benchmarks.cases.find_cases`.
        mode: ``"forward"`` or ``"train"``.
        compiled: compile too.
        subjects: those to measure beside the base; empty for all.
    """

    case: str
    mode: Mode = "forward"
    compiled: bool = False
    subjects: tuple[str, ...] = ()


def measure(run: OpRun, on_progress: OnProgress = silent) -> Record:
    """Measure one case; see :func:`benchmarks.run.record_of`."""
    find_cases([run.case])
    return record_of(measure_here, run, on_progress)


def measure_here(run: dict[str, Any], on_progress: OnProgress = silent) -> str:
    """Measure one case, from the fields of an :class:`OpRun`, in this process; a record as JSON."""
    asked = OpRun(**run)
    case = find_cases([asked.case])[0]
    taken, where = require_quiet_machine(asked, on_progress)
    dtype: torch.dtype = getattr(torch, asked.dtype)
    problem = pose(case, Setting(asked.batch, asked.mode, dtype, asked.device, asked.compiled))
    on_progress(0.02, "comparing with the reference")
    jobs, checks = checked(problem, asked.mode, dtype, wanted(problem, asked.subjects))
    if BASE not in jobs:
        raise RuntimeError(f"the base itself fails: {checks[BASE].note}")
    runs = {name: captured(job.timed, asked.device) for name, job in jobs.items()}
    effort = Effort(asked.rounds)
    times = interleaved(runs, clock_for(asked.device), effort, lambda part, what: on_progress(0.05 + 0.9 * part, what))
    on_progress(0.97, "bandwidth and peak")
    least = Floor(problem.bytes, problem.flops, floor.bandwidth(asked.device), floor.peak(asked.device, dtype))
    named = {"case": case.name, "base": BASE, "ours": ",".join(problem.ours)}
    facts = asked.facts("mode", "batch", "dtype", "rounds") | named
    results = {name: {TIME: series} for name, series in times.items()}
    return to_json(Record("op", taken, where, facts, results, checks, least))


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
