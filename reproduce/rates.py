"""The learning rate of every network on the clip art, from one grid: ``python -m reproduce.rates``.

A network is trained with each rate of :data:`RATES` and three seeds, on a part of the training pictures, and judged by
the rest of them: the pictures that the tables hold out have no say. What it found goes to :data:`RECORD`. Stop it at
any time: the same command goes on.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import commit
from reproduce.catalogue import find_entries
from reproduce.clipart import FOLDER, prepare_clipart
from reproduce.entries import Row
from reproduce.pool import Place, run_all
from reproduce.runs import Run, find_finished, make_run, read_figures

RATES = (1e-3, 2e-3, 4e-3)
SEEDS = (0, 1, 2)
RUNS = Path("reproduced/runs")
RECORD = Path("reproduced/clipart-rates.csv")


def grid(rows: Sequence[Row]) -> Iterator[tuple[str, float, Run]]:
    """Every row's runs, rate by rate: on the training pictures alone, of which the package holds a fifth out."""
    for row in rows:
        for rate in RATES:
            if row.setting is not None:
                options = {"data.folder": str(FOLDER / "train"), "optimizer.lr": rate}
                setting = replace(row.setting, overrides={**row.setting.overrides, **options})
                yield from ((row.label, rate, make_run(setting, seed)) for seed in SEEDS)


def write_record(path: Path, runs: Sequence[tuple[str, float, Run]]) -> None:
    """Write the accuracy of every run that is finished."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "rate", "seed", "top-1", "command"])
        for label, rate, run in runs:
            folder = find_finished(run, RUNS, other_code=True)
            if folder is not None:
                accuracy = read_figures(folder, "figures")["accuracy"]
                writer.writerow([label, rate, run.seed, f"{accuracy:.2f}", run.setting.command(run.seed)])


def main() -> None:
    """The command; its words are a table and, for some of its rows alone, their labels."""
    table, *labels = sys.argv[1:] or ["acmix-figure4"]
    (entry,) = find_entries([table])
    part = entry.part("clipart")
    if part is None:
        sys.exit(f"{table} has no rows on the clip art")
    rows = [row for row in part.rows if not labels or row.label in labels]
    prepare_clipart()
    runs = list(grid(rows))
    missing = {run.name: run for _, _, run in runs if find_finished(run, RUNS, other_code=True) is None}
    failures: list[str] = []

    def done(run: Run, failure: str) -> None:
        if failure:
            failures.append(f"{run.setting.command(run.seed)}: {failure}")

    finished = run_all(list(missing.values()), Place(RUNS, commit()), 1, 1, done)
    write_record(RECORD, runs)
    if failures or not finished:
        sys.exit("\n".join(failures) or "stopped: the same command goes on")


if __name__ == "__main__":
    main()
