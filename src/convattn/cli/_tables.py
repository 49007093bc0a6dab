"""What is printed for people: in a window as wide as that, elsewhere as wide as it is, so that nothing is cut."""

from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

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
