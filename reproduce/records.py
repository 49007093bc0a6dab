"""The published records, ``results/reproduce/*.csv``, read back: what no folder of results has any more."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias, TypeVar

from reproduce.entries import SMALL_SCALES, Quantity

RECORDS = Path(__file__).parent.parent / "results" / "reproduce"


Cells: TypeAlias = Mapping[str, str]
Key = TypeVar("Key")


@dataclass
class Recorded:
    """What a row of a table came to, seed by seed.

    Args:
        commit: of the code that made it.
        command: that made it; of a trained row that of its first seed.
        note: what has to be said with it.
        values: of every quantity by its name, of every seed.
    """

    commit: str
    command: str = ""
    note: str = ""
    values: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> set[int]:
        """Those of the runs that there were."""
        return set().union(*self.values.values())

    def by_seed(self, quantities: tuple[Quantity, ...]) -> dict[int, dict[str, float]]:
        """The numbers of these quantities by their keys; of those over epochs or depths, every one."""
        keys = {quantity.name: quantity.key for quantity in quantities}
        found: dict[int, dict[str, float]] = {}
        for name, values in self.values.items():
            start, at, place = name.partition(" at ")
            if start in keys:
                for seed, value in values.items():
                    found.setdefault(seed, {})[f"{keys[start]}{at}{place}"] = value
        return found


@cache
def by_command(folder: Path = RECORDS) -> Mapping[str, Recorded]:
    """All small runs by the command that makes the first seed: a run that several tables have is one."""
    return _gather(folder, lambda row: row["command"] if row["scale"] in SMALL_SCALES else None)


@cache
def by_row(folder: Path = RECORDS) -> Mapping[tuple[str, str, str], Recorded]:
    """All rows by table, scale and label, by whatever command they were made."""
    return _gather(folder, lambda row: (row["table"], row["scale"], row["row"]))


def values_of(text: str) -> dict[int, float]:
    """The value of every seed from what :func:`reproduce.tables.by_seed` wrote.

    Example:
        >>> values_of("97.5 98.0"), values_of("0:97.5 4:98.0")
        ({0: 97.5, 1: 98.0}, {0: 97.5, 4: 98.0})
    """
    pairs = (part.rpartition(":") for part in text.split())
    return {int(seed or place): float(value) for place, (seed, _, value) in enumerate(pairs)}


def _gather(folder: Path, key_of: Callable[[Cells], Key | None]) -> dict[Key, Recorded]:
    found: dict[Key, Recorded] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key = key_of(row)
                if key is not None and row["values"]:
                    about = Recorded(row["commit"], row["command"], row.get("note") or "")
                    found.setdefault(key, about).values[row["quantity"]] = values_of(row["values"])
    return found
