"""Runs one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.tasks.interrupt import SIGNALS, RunInterrupted, StopRequest, held_signals, let_signals_in
from reproduce.runs import Run, execute

POLL = 0.5
"""Seconds between two looks at what the processes did."""

Done = Callable[[Run, str], None]
"""Told of a run that ended, and why it failed; "" where it did not."""


class Stop:
    """Whether a Ctrl-C or SIGTERM came since it was entered, whoever handled it.

    A run takes these signals for itself while it trains, but the runs after it need them too. Python writes every
    signal's number to the wake-up descriptor, whatever the handler.

    Example:
        >>> import signal
        >>> with Stop() as stop, StopRequest():
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.received
        True
    """

    def __enter__(self) -> Stop:
        self._request, self._came = StopRequest(), False
        self._request.__enter__()
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        is_main = threading.current_thread() is threading.main_thread()
        self._former = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False) if is_main else None
        return self

    def __exit__(self, *error: Any) -> None:
        if self._former is not None:
            signal.set_wakeup_fd(self._former)
        self._reader.close()
        self._writer.close()
        self._request.__exit__(*error)

    @property
    def received(self) -> bool:
        """Whether to end."""
        with suppress(BlockingIOError):
            self._came |= any(number in SIGNALS for number in self._reader.recv(4096))
        return self._came or self._request.received


@dataclass(frozen=True)
class Place:
    """Where the runs go and what is written about them.

    Args:
        root: the folder of all runs.
        commit: of the code.
        devices: how many GPUs there are.
    """

    root: Path
    commit: str
    devices: int = 0

    def device(self, worker: int) -> str | None:
        """The GPU of a process."""
        return str(worker % self.devices) if self.devices else None


def run_all(runs: Sequence[Run], place: Place, jobs: int, threads: int, done: Done) -> bool:
    """Train all runs that are not finished; return whether all of them were come to.

    A Ctrl-C or SIGTERM lets every run that is under way save itself, and ends.

    Args:
        runs: in order.
        place: where they go.
        jobs: how many at a time; 1 runs them in this process.
        threads: torch's, of every process.
        done: is told of each.
    """
    if jobs == 1:
        return _here(runs, place, threads, done)
    return _apart(runs, place, min(jobs, max(len(runs), 1)), threads, done)


def _here(runs: Sequence[Run], place: Place, threads: int, done: Done) -> bool:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Stop() as stop:
            for run in runs:
                if stop.received or not _try(run, place, 0, stop, done):
                    return False
        return True
    finally:
        torch.set_num_threads(before)


def _try(run: Run, place: Place, worker: int, stop: Stop, done: Done) -> bool:
    """Train one; return whether to go on."""
    try:
        execute(run, place.root, place.device(worker), lambda: stop.received, place.commit)
    except RunInterrupted:
        return False
    except (ValueError, RuntimeError, OSError, ArithmeticError) as error:  # one that fails does not end the others
        done(run, f"{type(error).__name__}: {error}")
    else:
        done(run, "")
    return True


def _apart(runs: Sequence[Run], place: Place, jobs: int, threads: int, done: Done) -> bool:
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    results: Any = context.Queue()
    for run in [*runs, *[None] * jobs]:
        tasks.put(run)
    workers = [
        context.Process(target=_work, args=(number, place, threads, tasks, results), daemon=False)
        for number in range(jobs)
    ]
    left = {run.name: run for run in runs}
    with Stop() as stop:
        with held_signals():  # one that comes while a process imports waits until it can be answered
            for worker in workers:
                worker.start()
        while left and any(worker.is_alive() for worker in workers):
            _listen(results, left, done)
            if stop.received:
                for worker in workers:
                    worker.terminate()  # SIGTERM: the run is saved at its next batch; again, should it be just starting
        for worker in workers:
            worker.join()
        _listen(results, left, done)
        if not stop.received:
            for run in list(left.values()):
                done(run, "its process ended before it")
    return not left


def _listen(results: Any, left: dict[str, Run], done: Done) -> None:
    """Take what has come within a moment."""
    wait = POLL
    while True:
        try:
            name, failure = results.get(timeout=wait)
        except queue.Empty:
            return
        wait = 0.01
        run = left.pop(name, None)
        if run is not None:
            done(run, failure)


def _work(number: int, place: Place, threads: int, tasks: Any, results: Any) -> None:
    """A process: runs until there are none left, or it is told to stop."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with Stop() as stop:
        let_signals_in()
        while not stop.received:
            try:
                run = tasks.get(timeout=1.0)
            except queue.Empty:
                continue
            if run is None or not _try(run, place, number, stop, lambda one, why: results.put((one.name, why))):
                return


def _end_with_parent() -> None:
    """A process whose parent was killed must not go on writing into a folder that another may resume."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
