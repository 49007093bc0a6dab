"""Timing in turns, fresh processes, and the look at the machine before."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks import floor
from benchmarks.fresh import Process, call_fresh
from benchmarks.machine import environment
from benchmarks.quiet import Noise, require_quiet
from benchmarks.timing import CpuClock, Effort, Timed, interleaved
from convattn.errors import UserError
from tests.benchmarks import children


class StepClock:
    """A clock on which every call of a subject lasts what it says."""

    def __init__(self, lasts):
        self.lasts = lasts

    def seconds(self, run, calls):
        for _ in range(calls):
            run()
        return self.lasts[run.__name__]


def named(name, calls):
    def run():
        calls.append(name)

    run.__name__ = name
    return Timed(run)


def test_subjects_take_turns_and_what_is_slow_sits_out():
    calls = []
    subjects = {name: named(name, calls) for name in ("fast", "slow")}
    lasts = {"fast": 1e-3, "slow": 1.0}
    series = interleaved(subjects, StepClock(lasts), Effort(rounds=10, seconds=3.0, least=2, sample=2e-3))
    assert series["fast"].values == (1e-3,) * 10
    assert series["slow"].values == (1.0,) * 3, "3 s pay for 3 rounds"
    rounds = calls[2 * 3 :]  # one call and two timed ones plan each
    assert rounds[:8] == ["fast", "fast", "fast", "slow"] * 2, "a short call is warmed up and repeated, a long one not"
    assert series["slow"].over(series["fast"]).values == (1000.0,) * 3


def test_what_has_to_be_held_is_held_around_every_call():
    seen, held = [], []

    @contextmanager
    def hold():
        held.append(True)
        yield
        held.pop()

    interleaved({"a": Timed(lambda: seen.append(bool(held)), hold)}, CpuClock(), Effort(2, sample=1e-6))
    assert seen
    assert all(seen)


def test_the_rates_of_this_machine_are_positive():
    assert floor.bandwidth("cpu").range[0] > 1e8
    assert floor.peak("cpu", torch.float32, channels=32, size=8).range[0] > 1e6


def test_a_child_has_its_own_threads_and_instruction_set():
    told = []
    found = call_fresh(children.report, {"word": "x"}, Process(1, "avx2"), lambda done, what: told.append(what))
    assert found == {"word": "x", "threads": 1, "ONEDNN_MAX_CPU_ISA": "AVX2", "CONVATTN_CPU_ISA": "avx2"}
    assert told == ["at work"], "what the child prints besides is not taken for an event"


def test_a_child_that_refuses_says_so_and_one_that_dies_is_noticed():
    with pytest.raises(UserError, match=r"^not this way$"):
        call_fresh(children.refuse, {}, Process())
    with pytest.raises(RuntimeError, match=r"(?s)failed with code -9.*last words"):
        call_fresh(children.die, {}, Process())


class TestQuiet:
    def test_reasons(self):
        assert Noise(in_use=0.05, spread=0.03, cores=2).reasons() == []
        (reason,) = Noise(in_use=0.9, spread=0.03, cores=2).reasons()
        assert reason == "others keep 0.9 of 2 cores busy (limit 0.2)"
        assert "varies by 40%" in Noise(0.0, 0.4, 2).reasons()[0]

    def test_a_neighbour_at_work_is_seen_and_refused_unless_allowed(self):
        where = environment(threads=1)
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.3)
            with pytest.raises(UserError, match=r"the machine is busy: others keep .* --allow-busy"):
                require_quiet(where, "cpu", allow_busy=False, attempts=1)
            marked = require_quiet(where, "cpu", allow_busy=True)
        finally:
            burner.kill()
            burner.wait()
        assert marked.quiet == "no"
        assert marked.in_use > 0.5
        assert marked.spread > 0
