"""Ctrl-C and SIGTERM: a run is saved at its next batch, then ends; any other command ends where it is."""

import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED = 130
"""The exit code of a command that one of them ended."""

GRACE = 10.0
"""Seconds that a command has to end after the signal, before it is ended."""


class RunInterrupted(Exception):
    """Training stopped on request; the run can be resumed."""


class Stopped(BaseException):
    """The command is to end where it is.

    No KeyboardInterrupt: Lightning and typer have answers of their own to that.
    """


class StopRequest:
    """Watches for Ctrl-C and SIGTERM while it is entered; a second Ctrl-C stops at once.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.received
        True
    """

    def __init__(self) -> None:
        self.received = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if _in_main_thread():
            self._former = {number: signal.getsignal(number) for number in SIGNALS}
            self.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._former)

    def watch(self) -> None:
        """Take the signals (back): Lightning puts its own handler over SIGTERM's, which would stop without saving."""
        if self._former:
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            self._end(number, frame)
        self.received = True

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Do what the signal did before any request watched for it."""
        handler = self._former[number]
        while isinstance(outer := getattr(handler, "__self__", None), StopRequest):
            handler = outer._former[number]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[None]:
    """Have the first Ctrl-C or SIGTERM raise :class:`Stopped`, and the next one end the process at once.

    Example:
        >>> try:
        ...     with stoppable():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Stopped:
        ...     print("ended")
        ended
    """
    if not _in_main_thread():
        yield
        return
    global _imports_around
    former, former_hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    _imports_around = _imports(inspect.currentframe())

    def hook(unraisable: Any) -> None:
        # Raised in a destructor or the like, from where it reaches nobody: raise it again, a moment later.
        if issubclass(unraisable.exc_type, Stopped):
            _alarm(0.05, _stop)
        else:
            former_hook(unraisable)

    try:
        sys.unraisablehook = hook
        for number in SIGNALS:
            signal.signal(number, _stop)
        yield
    finally:
        _restore(former)
        sys.unraisablehook = former_hook
        if hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) in (_stop, _leave):
            _alarm(0, signal.SIG_DFL)


@contextmanager
def held_signals() -> Iterator[None]:
    """Have the processes that are started in here begin with Ctrl-C and SIGTERM held back."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def let_signals_in() -> None:
    """End what :func:`held_signals` began in the process that started this one."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def obey_parent_alone() -> None:
    """Have this process, which ``multiprocessing`` started, end on its parent's SIGTERM and on no other signal.

    A signal to the whole group is the parent's to answer: it needs its workers until the run is saved.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        let_signals_in()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(SIGNALS)
            if received.si_signo == signal.SIGTERM and received.si_pid == parent.pid:
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


_imports_around = 0
"""How many imports were going on where :func:`stoppable` was entered."""


def _stop(number: int, frame: FrameType | None) -> None:
    if _imports(frame) > _imports_around:
        _leave(number, frame)  # an exception would be lost in there: torch's import, in C++, drops it
    for each in SIGNALS:
        signal.signal(each, _leave)
    _alarm(GRACE, _leave)  # whatever code may have taken the exception for one of its own
    raise Stopped


def _imports(frame: FrameType | None) -> int:
    """How many frames of Python's import system a frame stands in."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return found


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)


def _alarm(seconds: float, handler: Any) -> None:
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
