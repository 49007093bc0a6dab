"""The schema of a benchmark's record: where and when it was taken, what was run, every value measured."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import asdict, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from convattn.data.writing import write_text
from convattn.errors import UserError

SCHEMA = 1
TIME, PEAK = "time", "peak growth"

Isa: TypeAlias = Literal["default", "avx512", "avx2", "baseline"]
Verdict: TypeAlias = Literal["right", "wrong", "absent"]
Kind: TypeAlias = Literal["memory", "op", "model", "train", "runtime", "data", "start"]
ISAS: tuple[Isa, ...] = get_args(Isa)

_NETWORKS = ("models", "base", "size", "batch", "dtype")
KINDS: dict[Kind, tuple[str, ...]] = {
    "memory": ("batch", "channels", "height", "width", "dtype"),
    "op": ("case", "mode", "batch", "dtype", "base"),
    "model": _NETWORKS,
    "train": _NETWORKS,
    "runtime": (*_NETWORKS, "runtime", "operators"),
    "data": ("images", "side", "size", "batch", "workers", "base"),
    "start": ("images", "workers"),
}
"""What the case of every kind of record must hold."""


def _measured(value: Any) -> float:
    """A number as it is: a count stays one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"must be a finite number that is not negative, got {value!r}")
    return float(value) if isinstance(value, float) else value


Text: TypeAlias = Annotated[str, Field(min_length=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Measure: TypeAlias = Annotated[float, PlainValidator(_measured)]
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=STRICT)
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

    commit: Text
    convattn: Text
    torch: Text
    python: Text
    system: Text
    cpu: Text
    cores: Count
    threads: Count
    load: Measure
    gpu: Text = "none"
    isa: Isa = "default"
    kernels: Text = "unknown"
    timm: Text = "unknown"
    triton: Text = "unknown"
    natten: Text = "unknown"
    quiet: Literal["yes", "no", "unchecked"] = "unchecked"
    in_use: Measure = 0.0
    spread: Measure = 0.0


@dataclass(frozen=True, config=STRICT)
class Series:
    """The values of one quantity over repeated measurements.

    Example:
        >>> Series("bytes", (3.0, 1.0, 2.0)).median
        2.0
        >>> Series("s", (1.0, 2.0, 3.0, 4.0, 5.0)).quartiles
        (2.0, 4.0)
    """

    unit: Text
    values: Annotated[tuple[Measure, ...], Field(min_length=1, strict=False)]

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


@dataclass(frozen=True, config=STRICT)
class Check:
    """Whether a subject computes what the reference computes.

    Args:
        state: ``"right"``; ``"wrong"``: it was not timed; ``"absent"``: it cannot run here.
        error: largest difference over the largest value of the reference; None where there is none, or not finite.
        tolerance: what the error may be.
        note: why it is wrong or absent, or what is special about it.
    """

    state: Verdict
    error: Measure | None = None
    tolerance: Measure = 0.0
    note: str = ""


@dataclass(frozen=True, config=STRICT)
class Floor:
    """The least time that a machine could need: every byte moved once, every product done at full speed.

    Args:
        bytes: inputs, outputs and parameters, once each.
        flops: twice the multiply-adds of the cheapest exact form.
        bandwidth: bytes a second of a large copy, reads and writes counted.
        peak: floating-point operations a second of a large product.
    """

    bytes: Annotated[int, Field(ge=0)]
    flops: Annotated[int, Field(ge=0)]
    bandwidth: Series
    peak: Series

    @field_validator("bandwidth", "peak")
    @classmethod
    def _is_a_rate(cls, rate: Series) -> Series:
        if not rate.range[1] > 0:
            raise ValueError(f"must be above zero, got {rate.values}")
        return rate

    @property
    def bytes_seconds(self) -> float:
        """Time to move the bytes at the best bandwidth seen."""
        return self.bytes / self.bandwidth.range[1]

    @property
    def seconds(self) -> float:
        """The longer of moving the bytes and doing the products, at the best rates seen."""
        return max(self.bytes_seconds, self.flops / self.peak.range[1])


@dataclass(frozen=True, config=STRICT)
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

    kind: Kind
    taken: str
    environment: Environment
    case: dict[str, str | int | float]
    results: dict[str, dict[str, Series]]
    checks: dict[str, Check] = field(default_factory=dict)
    floor: Floor | None = None

    @field_validator("taken")
    @classmethod
    def _has_an_offset(cls, taken: str) -> str:
        try:
            aware = datetime.fromisoformat(taken).tzinfo is not None
        except ValueError:
            aware = False
        if not aware:
            raise ValueError(f"must be an ISO 8601 time with its offset from UTC, got {taken!r}")
        return taken

    @model_validator(mode="after")
    def _is_whole(self) -> Record:
        for name in KINDS[self.kind]:
            if name not in self.case:
                raise ValueError(f"case.{name} is missing: a record of kind {self.kind!r} has {KINDS[self.kind]}")
        if "base" in self.case and self.case["base"] not in self.results:
            raise ValueError(f"case.base must be among the results {tuple(self.results)}, got {self.case['base']!r}")
        names = {subject: sorted(measured) for subject, measured in self.results.items()}
        if len(set(map(tuple, names.values()))) != 1 or not all(names.values()):
            raise ValueError(f"results must not be empty, and every subject needs the same quantities, got {names}")
        return self

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
        if self.kind in ("data", "start"):
            return f"{self.kind}-{self.case['images']}-w{self.case['workers']}"
        parts = [self.case["case"], self.case["mode"]] if self.kind == "op" else [self.case["models"]]
        if self.kind == "runtime":
            parts += [self.case["runtime"], self.case["operators"], self.case["dtype"]]
        return "-".join([self.kind, *map(str, parts), f"b{self.case['batch']}"])

    @property
    def file_name(self) -> str:
        """The name of its file: kind, case and time; a colon would be no name on Windows."""
        return f"{self.slug.replace(':', '-')}-{datetime.fromisoformat(self.taken).strftime('%Y%m%d-%H%M%S')}.json"


def to_json(record: Record) -> str:
    """A record as JSON, readable by a person."""
    return json.dumps({"schema": SCHEMA} | asdict(record), indent=2) + "\n"


def from_json(text: str) -> Record:
    """The inverse of :func:`to_json`.

    Raises:
        ValueError: no JSON, another schema, or a field that does not fit; the message names it.
    """
    plain: Any = json.loads(text)
    schema = plain.pop("schema", None) if isinstance(plain, dict) else plain
    if schema != SCHEMA or not isinstance(plain, dict):
        raise ValueError(f"schema must be {SCHEMA}, got {schema!r}")
    try:
        return _RECORD.validate_json(json.dumps(plain))
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from error


_RECORD = TypeAdapter(Record)
_PHRASES = {"missing": "is missing", "unexpected_keyword_argument": "is unknown"}


def _first_fault(error: ValidationError) -> str:
    """The first thing that does not fit, after its path."""
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    expected = re.sub(r"^\w+ should", "must", first["msg"])
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{expected}, got {first['input']!r}"
    return f"{path} {_PHRASES.get(first['type'], said)}".strip()


def milliseconds(seconds: float) -> str:
    """A time for people.

    Example:
        >>> milliseconds(0.0004567), milliseconds(8.5761)
        ('0.457', '8576')
    """
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_record(record: Record, folder: Path) -> Path:
    """Write a record into a folder under a name that says kind, case and time; never a half-written file."""
    path = folder / record.file_name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(record))
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
