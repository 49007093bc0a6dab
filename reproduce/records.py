"""The published records, ``results/reproduce/*.csv``, read back: small runs whose folders are gone."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from reproduce.entries import SMALL_SCALES, Quantity

RECORDS = Path(__file__).parent.parent / "results" / "reproduce"


@dataclass
class Recorded:
    """What the runs of one command came to, seed by seed.

    Args:
        commit: of the code that trained them.
        values: of every quantity by its name, from seed 0 on.
    """

    commit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many runs there were."""
        return max(map(len, self.values.values()), default=0)

    def by_seed(self, quantities: tuple[Quantity, ...]) -> dict[int, dict[str, float]]:
        """The numbers of these quantities by their keys; of those over epochs or depths, every one."""
        keys = {quantity.name: quantity.key for quantity in quantities}
        found: dict[int, dict[str, float]] = {}
        for name, values in self.values.items():
            start, at, place = name.partition(" at ")
            if start in keys:
                for seed, value in enumerate(values):
                    found.setdefault(seed, {})[f"{keys[start]}{at}{place}"] = value
        return found


@cache
def read_records(folder: Path = RECORDS) -> Mapping[str, Recorded]:
    """All small runs of the records by the command that makes the first seed."""
    found: dict[str, Recorded] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["scale"] in SMALL_SCALES and row["values"]:
                    of_run = found.setdefault(row["command"], Recorded(row["commit"]))
                    of_run.values[row["quantity"]] = [float(value) for value in row["values"].split()]
    return found
