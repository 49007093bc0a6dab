"""``python -m convattn.bench``: measure, print a table, write a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from convattn.bench.memory import KEPT, PEAK, MemoryCase, measure
from convattn.bench.record import Record, write_record

BUSY = 0.5  # a load per core from which the figures may be a neighbour's


def run(
    batch: Annotated[int, typer.Option(help="Images.", min=1)] = 8,
    channels: Annotated[int, typer.Option(help="Channels, divisible by 4.", min=4)] = 64,
    size: Annotated[int, typer.Option(help="Height and width of the map.", min=4)] = 56,
    processes: Annotated[int, typer.Option(help="Fresh processes for every layer.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the record.")] = Path("results"),
) -> None:
    """Peak memory of ACmix forward and backward, beside an unfold formulation and a convolution."""
    case = MemoryCase(batch, channels, size, size, threads=torch.get_num_threads())
    console = Console()
    with console.status(f"{3 * processes} fresh processes, one after the other"):
        record = measure(case, processes=processes)
    console.print(as_table(record))
    if record.environment.load > BUSY * record.environment.cores:
        console.print(f"The machine was busy when this began (load {record.environment.load}).", style="yellow")
    console.print(f"record: {write_record(record, out)}", soft_wrap=True)


def as_table(record: Record) -> Table:
    """A memory record for people: growth of the peak over the time before, bytes kept from forward to backward."""
    case = record.case
    shape = f"{case['batch']}x{case['channels']}x{case['height']}x{case['width']}"
    table = Table(
        title=f"forward + backward at {shape}, {case['dtype']}, median of {case['processes']} processes",
        caption=f"{record.environment.cpu}, {record.environment.threads} threads, torch {record.environment.torch}",
    )
    table.add_column("layer", no_wrap=True)
    for heading in ("peak MiB", "range", "of Conv2d", "kept MiB", "of Conv2d"):
        table.add_column(heading, justify="right", no_wrap=True)
    base = next(iter(record.results.values()))
    for layer, measured in record.results.items():
        peak, kept = measured[PEAK], measured[KEPT]
        low, high = peak.range
        table.add_row(
            layer,
            _mib(peak.median),
            f"{_mib(low)}-{_mib(high)}",
            _ratio(peak.median, base[PEAK].median),
            _mib(kept.median),
            _ratio(kept.median, base[KEPT].median),
        )
    return table


def _mib(value: float) -> str:
    return f"{value / 2**20:.1f}"


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}x" if base else "-"


if __name__ == "__main__":
    typer.run(run)
