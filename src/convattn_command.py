"""Where the ``convattn`` command begins: it answers Ctrl-C and SIGTERM before its imports, which take seconds.

A module beside the package, since what lies inside the package imports torch first.
"""

import os
import signal
from types import FrameType

STOPPED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended."""


def main() -> None:
    """Run the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from convattn.cli import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)
