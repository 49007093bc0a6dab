"""The schema of a benchmark's record: where and when it was taken, what was run, every value measured."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from convattn.errors import UserError, naming_file

SCHEMA = 1
TIME, PEAK = "time", "peak growth"

Isa: TypeAlias = Literal["default", "avx512", "avx2", "baseline"]
Verdict: TypeAlias = Literal["right", "wrong", "absent"]
ISAS: tuple[Isa, ...] = get_args(Isa)

# What the case of every kind of record must hold.
KINDS: dict[str, tuple[str, ...]] = {
    "memory": ("batch", "channels", "height", "width", "dtype"),
    "op": ("case", "mode", "batch", "dtype", "base"),
    "model": ("models", "base", "size", "batch", "dtype"),
    "train": ("models", "base", "size", "batch", "dtype"),
}
_CHOICES: dict[str, tuple[str, ...]] = {"isa": ISAS, "quiet": ("yes", "no", "unchecked")}


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
        gpu: the GPU measured, ``"none"`` where the CPU was.
        isa: the instruction set that the process was held to, oneDNN and our kernels alike.
        kernels: the instruction set that our CPU kernels then chose, or why they were off.
        timm: its version.
        triton: its version.
        natten: its version.
        quiet: whether the machine was found quiet right before: ``"yes"``, ``"no"`` or ``"unchecked"``.
        in_use: cores in use by others right before.
        spread: IQR over median of a convolution's time right before.
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
    gpu: str = "none"
    isa: Isa = "default"
    kernels: str = "unknown"
    timm: str = "unknown"
    triton: str = "unknown"
    natten: str = "unknown"
    quiet: str = "unchecked"
    in_use: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        """Check every field's type and range."""
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in _CHOICES:
                _check(f"environment.{one.name}", value, value in _CHOICES[one.name], f"one of {_CHOICES[one.name]}")
            elif one.type == "str":
                _check(f"environment.{one.name}", value, isinstance(value, str) and value != "", "a valid str")
            elif one.type == "int":
                fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
                _check(f"environment.{one.name}", value, fits, "a valid int")
            else:
                _check(f"environment.{one.name}", value, _is_measure(value), "a valid float")


@dataclass(frozen=True)
class Series:
    """The values of one quantity over repeated measurements.

    Example:
        >>> Series("bytes", (3.0, 1.0, 2.0)).median
        2.0
        >>> Series("s", (1.0, 2.0, 3.0, 4.0, 5.0)).quartiles
        (2.0, 4.0)
    """

    unit: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that there are values, all finite and none negative."""
        _check("unit", self.unit, isinstance(self.unit, str) and self.unit != "", "a name: a series needs a unit")
        _check("values", self.values, len(self.values) > 0, "at least one value")
        for value in self.values:
            _check("values", value, _is_measure(value), "finite and not negative")

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return min(self.values), max(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third: half of the values lie between them."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """The distance of the quartiles over the median."""
        first, third = self.quartiles
        return (third - first) / self.median if self.median else 0.0

    def over(self, base: Series) -> Series:
        """Round by round, this quantity over another; rounds that one of them sat out are left out.

        Example:
            >>> Series("s", (2.0, 9.0)).over(Series("s", (1.0, 3.0, 5.0))).values
            (2.0, 3.0)
        """
        pairs = zip(self.values, base.values, strict=False)
        return Series("ratio", tuple(value / other for value, other in pairs if other > 0))


@dataclass(frozen=True)
class Check:
    """Whether a subject computes what the reference computes.

    Args:
        state: ``"right"``; ``"wrong"``: it was not timed; ``"absent"``: it cannot run here.
        error: largest difference over the largest value of the reference; None where there is none, or not finite.
        tolerance: what the error may be.
        note: why it is wrong or absent, or what is special about it.
    """

    state: Verdict
    error: float | None = None
    tolerance: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        """Check state and numbers."""
        _check("state", self.state, self.state in get_args(Verdict), f"one of {get_args(Verdict)}")
        _check("error", self.error, self.error is None or _is_measure(self.error), "a finite number or null")
        _check("tolerance", self.tolerance, _is_measure(self.tolerance), "a finite number")
        _check("note", self.note, isinstance(self.note, str), "a text")


@dataclass(frozen=True)
class Floor:
    """The least time that a machine could need: every byte moved once, every product done at full speed.

    Args:
        bytes: inputs, outputs and parameters, once each.
        flops: twice the multiply-adds of the cheapest exact form.
        bandwidth: bytes a second of a large copy, reads and writes counted.
        peak: floating-point operations a second of a large product.
    """

    bytes: int
    flops: int
    bandwidth: Series
    peak: Series

    def __post_init__(self) -> None:
        """Check the counts and the rates."""
        for name in ("bytes", "flops"):
            value = getattr(self, name)
            _check(name, value, isinstance(value, int) and value >= 0, "a whole number")
        for name in ("bandwidth", "peak"):
            _check(f"{name}.values", getattr(self, name).values, getattr(self, name).range[1] > 0, "above zero")

    @property
    def bytes_seconds(self) -> float:
        """Time to move the bytes at the best bandwidth seen."""
        return self.bytes / self.bandwidth.range[1]

    @property
    def seconds(self) -> float:
        """The longer of moving the bytes and doing the products, at the best rates seen."""
        return max(self.bytes_seconds, self.flops / self.peak.range[1])


@dataclass(frozen=True)
class Record:
    """One benchmark run.

    Args:
        kind: which benchmark, a key of ``KINDS``.
        taken: when, ISO 8601 with the offset from UTC.
        environment: where.
        case: the sizes and settings that were run; ``base`` names the subject that ratios are over.
        results: for every subject measured, its quantities by name; all subjects have the same ones. The n-th times
            of all subjects are of one round.
        checks: for every subject, measured or not, whether it is right.
        floor: the least time possible, where it is known.

    Raises:
        ValueError: a field that is missing, empty or out of range; the message names it.
    """

    kind: str
    taken: str
    environment: Environment
    case: dict[str, str | int | float]
    results: dict[str, dict[str, Series]]
    checks: dict[str, Check] = field(default_factory=dict)
    floor: Floor | None = None

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves."""
        _check("kind", self.kind, self.kind in KINDS, f"one of {tuple(KINDS)}")
        try:
            aware = datetime.fromisoformat(self.taken).tzinfo is not None
        except (TypeError, ValueError):
            aware = False
        _check("taken", self.taken, aware, "an ISO 8601 time with its offset from UTC")
        if not self.case or not self.results:
            raise ValueError(f"case and results must not be empty, got {self.case!r} and {self.results!r}")
        for name in KINDS[self.kind]:
            if name not in self.case:
                raise ValueError(f"case.{name} is missing: a record of kind {self.kind!r} has {KINDS[self.kind]}")
        if "base" in self.case and self.case["base"] not in self.results:
            raise ValueError(f"case.base must be among the results {tuple(self.results)}, got {self.case['base']!r}")
        names = {subject: sorted(measured) for subject, measured in self.results.items()}
        if len(set(map(tuple, names.values()))) > 1 or not all(names.values()):
            raise ValueError(f"results: every subject needs the same quantities, got {names}")

    @property
    def base(self) -> str:
        """The subject that ratios are over."""
        return str(self.case.get("base", next(iter(self.results))))

    def ratio(self, subject: str, quantity: str = TIME) -> Series:
        """A subject's quantity over the base's: times round by round, others by their medians."""
        measured, base = self.results[subject][quantity], self.results[self.base][quantity]
        if quantity == TIME:
            return measured.over(base)
        return Series("ratio", (measured.median / max(base.median, 1.0),))

    @property
    def slug(self) -> str:
        """The record's name in a file's name, without the time."""
        if self.kind == "memory":
            return self.kind
        parts = [self.case["case"], self.case["mode"]] if self.kind == "op" else [self.case["models"]]
        return "-".join([self.kind, *map(str, parts), f"b{self.case['batch']}"])

    @property
    def file_name(self) -> str:
        """The name of its file: kind, case and time."""
        return f"{self.slug}-{datetime.fromisoformat(self.taken).strftime('%Y%m%d-%H%M%S')}.json"


def to_json(record: Record) -> str:
    """A record as JSON, readable by a person."""
    return json.dumps({"schema": SCHEMA} | asdict(record), indent=2) + "\n"


def from_json(text: str) -> Record:
    """The inverse of :func:`to_json`.

    Raises:
        ValueError: no JSON, another schema, or a field that does not fit; the message names it.
    """
    plain: Any = json.loads(text)
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        found = plain.get("schema") if isinstance(plain, dict) else plain
        raise ValueError(f"schema must be {SCHEMA}, got {found!r}")
    plain = {name: value for name, value in plain.items() if name != "schema"}
    _check_names("", plain, Record)
    results = {
        subject: {name: _series(f"{path}.{name}", one) for name, one in _table(path, measured)}
        for subject, measured in _table("results", plain["results"])
        for path in [f"results.{subject}"]
    }
    checks = {name: _made(f"checks.{name}", one, Check) for name, one in _table("checks", plain.get("checks", {}))}
    floor = plain.get("floor")
    if floor is not None:
        rates = {name: _series(f"floor.{name}", one) for name, one in _table("floor", floor) if name in _RATES}
        floor = _made("floor", floor | rates, Floor)
    where = _made("environment", plain["environment"], Environment, prefix="")
    return Record(plain["kind"], plain["taken"], where, dict(_table("case", plain["case"])), results, checks, floor)


def milliseconds(seconds: float) -> str:
    """A time for people.

    Example:
        >>> milliseconds(0.0004567), milliseconds(8.5761)
        ('0.457', '8576')
    """
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_RATES = ("bandwidth", "peak")


def _is_measure(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _check(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _table(path: str, plain: Any) -> Any:
    """The entries of what must be an object."""
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must be an object, got {plain!r}")
    return plain.items()


def _check_names(path: str, plain: Any, kind: type) -> None:
    """That an object has the fields of a dataclass, and no others."""
    given = {name for name, _ in _table(path, plain)}
    known = {one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(kind)}
    dot = f"{path}." if path else ""
    for name, needed in known.items():
        if needed and name not in given:
            raise ValueError(f"{dot}{name} is missing")
    for name in sorted(given - set(known)):
        raise ValueError(f"{dot}{name} is unknown; known are {', '.join(known)}")


def _made(path: str, plain: Any, kind: type, prefix: str | None = None) -> Any:
    """A dataclass from an object; what it says about a field is preceded by the path."""
    _check_names(path, plain, kind)
    try:
        return kind(**plain)
    except ValueError as error:
        raise ValueError(f"{f'{path}.' if prefix is None else prefix}{error}") from error


def _series(path: str, plain: Any) -> Series:
    _check_names(path, plain, Series)
    if not isinstance(plain["values"], list | tuple):
        raise ValueError(f"{path}.values must be a list, got {plain['values']!r}")
    return _made(path, plain | {"values": tuple(plain["values"])}, Series)


def write_record(record: Record, folder: Path) -> Path:
    """Write a record into a folder under a name that says kind, case and time; never a half-written file."""
    path = folder / record.file_name
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with naming_file(unfinished):
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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a benchmark record: {error}") from error


def read_records(folder: Path) -> list[Record]:
    """All records of a folder, the oldest first.

    Raises:
        UserError: a file that is no record; the message names it.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: (datetime.fromisoformat(record.taken), record.slug))
