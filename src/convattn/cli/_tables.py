"""What is printed for people: in a window as wide as that, elsewhere as wide as it is, so that nothing is cut."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from convattn.data.types import SkippedFile

NO_EDGE = 2**16
"""A width that nothing reaches."""


def make_console(*, stderr: bool = False, file: TextIO | None = None) -> Console:
    """Return a console that breaks lines at the edge of its window, and none where it has no window.

    Rich takes a pipe or a file for a window of 80 columns, and there cuts the numbers of a table.
    """
    console = Console(stderr=stderr, file=file)
    if not console.file.isatty():
        console.width = NO_EDGE
    return console


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: a path that is copied from them has no break."""
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table; where the window is too narrow, text that may fold does, and other rows go on in the next line."""
    window = console.width
    if any(column.overflow == "fold" for column in table.columns):
        for column in table.columns:
            column.no_wrap = column.no_wrap or column.justify == "right"
    else:
        whole = Measurement.get(console, console.options.update(width=NO_EDGE), table).maximum
        console.width = max(window, whole)
    console.print(table, highlight=False, crop=False)
    console.width = window


@contextmanager
def counting(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while something is done, where there is a window: on the standard error unless a console is given.

    Yields:
        What moves it: called with how many are done, and how many there are.
    """
    console = make_console(stderr=True) if console is None else console
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def list_skipped(head: str, skipped: Sequence[SkippedFile]) -> None:
    """Name the images that were left out, on the standard error."""
    print("\n".join([head, *(f"  {file.path}: {file.reason}" for file in skipped)]), file=sys.stderr)
