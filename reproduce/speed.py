"""The speed columns: networks of a table timed in turns on this machine, by :mod:`benchmarks.network`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from benchmarks.fresh import OnProgress, silent
from benchmarks.network import NetworkRun, measure
from benchmarks.record import Record, to_json
from convattn.data.writing import write_text
from reproduce.entries import Entry, Part

ROUNDS = 20


def run_of(part: Part, device: str = "cpu", threads: int = 1, *, allow_busy: bool = False) -> NetworkRun:
    """What is timed for a table: its rows, of which the first is the base."""
    base, *models = (row.subject for row in part.rows)
    return NetworkRun(
        models=tuple(models),
        base=base,
        size=part.case["size"],
        batch=part.case["batch"],
        device=device,
        rounds=ROUNDS,
        processes=0,
        threads=threads,
        allow_busy=allow_busy,
    )


def time_table(entry: Entry, run: NetworkRun, out: Path, on_progress: OnProgress = silent) -> Record:
    """Time a table's rows in a fresh process and write the record.

    Raises:
        UserError: the machine is busy.
        RuntimeError: the process failed.
    """
    record = measure("model", run, on_progress)
    out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.fromisoformat(record.taken).strftime("%Y-%m-%dT%H%M%S")
    write_text(out / f"{entry.id}-{stamp}.json", to_json(record))
    return record
