"""What a person is shown of measurements: tables, what is absent, and what to run next."""

import re
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from benchmarks import page
from benchmarks.record import Record
from convattn.cli._tables import make_console, print_table, say


def show(records: list[Record], paths: list[Path]) -> None:
    """Print the tables of some records, and where they lie."""
    console = make_console()
    for title, head, rows in page.tables(records, page.place_of):
        table = Table(*head, title=escape(title))
        for row in rows:
            table.add_row(*(re.sub(r"\*\*(.+?)\*\*", r"[bold red]\1[/]", escape(cell)) for cell in row))
        print_table(console, table)
    for line in page.absences(records):
        console.print(line, style="dim", soft_wrap=True, highlight=False, markup=False)
    if any(record.environment.quiet == "no" for record in records):
        console.print("The machine was busy: do not trust these times.", style="yellow")
    say(console, *(f"record: {path}" for path in paths), f"next: {_next(records[0])}")


def _next(record: Record) -> str:
    """Return what a person may want to run after a measurement."""
    base, *others = dict.fromkeys(name.partition("@")[0] for name in (record.base, *record.results))
    networks = " ".join(others or [base])
    steps = {
        "op": "python -m benchmarks model acmix_resnet50   (a whole network beside the plain one)",
        "memory": "python -m benchmarks op 'acmix*' --mode train   (what the layer costs in time)",
        "model": f"python -m benchmarks model {networks} --mode train   (their training steps)",
        "runtime": f"python -m benchmarks model {networks}   (the same in PyTorch)",
        "data": "python -m benchmarks start   (what a run needs to start on many images)",
        "start": "python -m benchmarks data   (how fast the images come then)",
        "train": f"convattn cost {networks} {base}   (parameters and multiply-adds)",
    }
    return steps[record.kind] + "\nthen: python -m benchmarks docs   (the page of all records)"
