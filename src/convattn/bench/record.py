"""The schema of a benchmark's record: where and when it was taken, what was run, every value measured."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from convattn.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Environment:
    """The machine and the software of a record.

    Args:
        commit: the checkout's commit, with ``-dirty`` where files differ from it; ``"unknown"`` outside a checkout.
        convattn: its version.
        torch: its version.
        python: its version.
        system: operating system and architecture.
        cpu: the processor's name.
        cores: processors that this process may use.
        threads: torch's threads during the measurement.
        load: the machine's 1-minute load average right before the measurement; a neighbour's work shows here.
    """

    commit: str
    convattn: str
    torch: str
    python: str
    system: str
    cpu: str
    cores: int
    threads: int
    load: float

    def __post_init__(self) -> None:
        """Check every field's type and range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str":
                fits = isinstance(value, str) and value != ""
            elif field.type == "int":
                fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            else:
                fits = isinstance(value, int | float) and math.isfinite(value) and value >= 0
            if not fits:
                raise ValueError(f"environment.{field.name} must be a valid {field.type}, got {value!r}")


@dataclass(frozen=True)
class Series:
    """The values of one quantity over repeated measurements.

    Example:
        >>> Series("bytes", (3.0, 1.0, 2.0)).median
        2.0
    """

    unit: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that there are values, all finite and none negative."""
        if not self.unit or not isinstance(self.unit, str):
            raise ValueError(f"a series needs a unit, got {self.unit!r}")
        if not self.values:
            raise ValueError("a series needs at least one value, got none")
        bad = [v for v in self.values if not isinstance(v, int | float) or not math.isfinite(v) or v < 0]
        if bad:
            raise ValueError(f"values must be finite and not negative, got {bad[0]!r}")

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)


@dataclass(frozen=True)
class Record:
    """One benchmark run.

    Args:
        kind: which benchmark, ``"memory"`` for one.
        taken: when, ISO 8601 with the offset from UTC.
        environment: where.
        case: the sizes and settings that were run.
        results: for every subject measured, its quantities by name; all subjects have the same ones.

    Raises:
        ValueError: a field that is missing, empty or out of range; the message names it.
    """

    kind: str
    taken: str
    environment: Environment
    case: dict[str, str | int | float]
    results: dict[str, dict[str, Series]]

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves."""
        if not isinstance(self.kind, str) or not self.kind.isidentifier():
            raise ValueError(f"kind must be a plain name, got {self.kind!r}")
        try:
            aware = datetime.fromisoformat(self.taken).tzinfo is not None
        except (TypeError, ValueError):
            aware = False
        if not aware:
            raise ValueError(f"taken must be an ISO 8601 time with its offset from UTC, got {self.taken!r}")
        if not self.case or not self.results:
            raise ValueError(f"case and results must not be empty, got {self.case!r} and {self.results!r}")
        names = {subject: sorted(measured) for subject, measured in self.results.items()}
        if len(set(map(tuple, names.values()))) > 1 or not all(names.values()):
            raise ValueError(f"every subject needs the same quantities, got {names}")


def to_json(record: Record) -> str:
    """A record as JSON, readable by a person."""
    return json.dumps({"schema": SCHEMA} | asdict(record), indent=2) + "\n"


def from_json(text: str) -> Record:
    """The inverse of :func:`to_json`.

    Raises:
        ValueError: no JSON, another schema, or a field that does not fit.
    """
    plain: Any = json.loads(text)
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        found = plain.get("schema") if isinstance(plain, dict) else plain
        raise ValueError(f"schema must be {SCHEMA}, got {found!r}")
    try:
        results = {
            subject: {name: Series(s["unit"], tuple(s["values"])) for name, s in measured.items()}
            for subject, measured in plain["results"].items()
        }
        return Record(plain["kind"], plain["taken"], Environment(**plain["environment"]), plain["case"], results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a field is missing, unknown or of another type: {error}") from error


def write_record(record: Record, folder: Path) -> Path:
    """Write a record into a folder under a name that says kind and time; never a half-written file."""
    stamp = datetime.fromisoformat(record.taken).strftime("%Y%m%d-%H%M%S")
    path = folder / f"{record.kind}-{stamp}.json"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(to_json(record), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        UserError: no such file, or one that is no record; the message names the file and the field.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a benchmark record: {error}") from error
