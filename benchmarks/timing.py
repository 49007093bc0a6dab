"""Times several things in turns, A B C A B C, so that what the machine does meanwhile meets them all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from benchmarks.fresh import OnProgress, silent
from benchmarks.record import Series

WARM_UP_BELOW = 20e-3  # seconds; what is longer does not notice a cold start


class CpuClock:
    """Wall time."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """The mean time of a call."""
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls


class CudaClock:
    """Time on the GPU by its own events, the level 2 cache emptied before every call.

    Args:
        device: which GPU.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """The mean time of a call."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in events:
            self.flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in events) / calls / 1e3


Clock: TypeAlias = CpuClock | CudaClock


def clock_for(device: str) -> Clock:
    """The clock of a device, by name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``."""
    return CpuClock() if device == "cpu" else CudaClock(device)


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Args:
        run: one call.
        held: what has to be entered around calls, and costs no time of theirs.
    """

    run: Callable[[], Any]
    held: Callable[[], AbstractContextManager[Any]] = nullcontext


def captured(timed: Timed, device: str) -> Timed:
    """On a GPU the call as a CUDA graph, so that its launches cost nothing; itself where it cannot be captured."""
    if device == "cpu":
        return timed
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with timed.held(), torch.cuda.stream(stream):
        for _ in range(3):
            timed.run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with timed.held(), torch.cuda.graph(graph):
            timed.run()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return timed

    def replay(held: Timed = timed) -> None:  # a graph does not keep the weights and images that it reads
        graph.replay()

    return Timed(replay)


@dataclass(frozen=True)
class Effort:
    """How much timing is done.

    Args:
        rounds: at most so many for every subject.
        seconds: a subject sits out the rest of the rounds when it would need more, but does ``least`` of them.
        least: see there.
        sample: short calls are repeated until they last so long, in seconds.
    """

    rounds: int = 40
    seconds: float = 4.0
    least: int = 5
    sample: float = 4e-3


def _settle_allocator() -> None:
    """Free one large block, as any network soon does with its activations.

    glibc gives memory back to the system beyond twice the largest block freed so far (at most 32 MiB), and then what
    is timed is page faults, of whoever allocates next.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def interleaved(
    subjects: Mapping[str, Timed], clock: Clock, effort: Effort, on_progress: OnProgress = silent
) -> dict[str, Series]:
    """Time subjects in rounds; the n-th values of all are of round n.

    Example:
        >>> times = interleaved({"a": Timed(list), "b": Timed(dict)}, CpuClock(), Effort(rounds=3, sample=1e-5))
        >>> [len(series.values) for series in times.values()]
        [3, 3]
    """
    _settle_allocator()
    plans = {name: _plan(timed, clock, effort) for name, timed in subjects.items()}
    values: dict[str, list[float]] = {name: [] for name in subjects}
    rounds = max(plan.rounds for plan in plans.values())
    collects = gc.isenabled()
    gc.disable()  # a collection would land on whichever is being timed
    try:
        for number in range(rounds):
            on_progress(number / rounds, f"round {number + 1} of {rounds}")
            for name, timed in subjects.items():
                if number < plans[name].rounds:
                    values[name].append(_sample(timed, plans[name], clock))
    finally:
        if collects:
            gc.enable()
    return {name: Series("s", tuple(times)) for name, times in values.items()}


@dataclass(frozen=True)
class _Plan:
    rounds: int
    calls: int
    warm_up: bool


def _sample(timed: Timed, plan: _Plan, clock: Clock) -> float:
    with timed.held():
        if plan.warm_up:
            timed.run()
        return clock.seconds(timed.run, plan.calls)


def _plan(timed: Timed, clock: Clock, effort: Effort) -> _Plan:
    with timed.held():
        timed.run()
        once = max(min(clock.seconds(timed.run, 1) for _ in range(2)), 1e-7)
    calls, warm_up = max(1, math.ceil(effort.sample / once)), once < WARM_UP_BELOW
    fitting = int(effort.seconds / (once * (calls + warm_up)))
    return _Plan(max(min(effort.rounds, fitting), min(effort.least, effort.rounds)), calls, warm_up)
