"""Where the ``convattn`` command begins: it answers Ctrl-C and SIGTERM before its imports, which take seconds.

A module beside the package, since what lies inside the package imports torch first.
"""

import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from types import FrameType

STOPPED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended."""


def main() -> None:
    """Run the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    share_cores(sys.argv[1:], os.environ)
    from convattn.cli import main as run

    run()


def share_cores(words: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Let the threads of a command that reads images wait for each other without holding their cores for long.

    By default GNU's OpenMP spins while it waits. Where anything else needs one of these cores, the loaders' workers do,
    every wait lasts until that is through: on two cores beside other work an epoch of 48 photos took 15 s in place of
    2 s. On free cores a step takes about a tenth longer. Read when torch is loaded; benchmarks keep the default.
    """
    if words[:1] and words[0] in ("train", "val", "predict"):
        environment.setdefault("GOMP_SPINCOUNT", "1000")


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)
