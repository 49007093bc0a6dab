"""What the operators have to reach, as data, and which record says whether they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.record import PEAK, TIME, Record, Series

Figure: TypeAlias = Literal["time ratio", "peak ratio", "times the floor", "part of the byte floor"]
Outcome: TypeAlias = Literal["goal met", "gate met", "missed", "wrong", "not run"]


@dataclass(frozen=True)
class Selector:
    """Which records speak of a requirement.

    Args:
        kind: of the record.
        case: fields of its case, with their values.
        threads: of the process; None for any.
        isa: that the process was held to.
        gpu: whether it ran on one.
    """

    kind: str
    case: tuple[tuple[str, str | int], ...]
    threads: int | None = 2
    isa: str = "default"
    gpu: bool = False

    def matches(self, record: Record) -> bool:
        """Whether a record is such a one."""
        where = record.environment
        return (
            record.kind == self.kind
            and all(record.case.get(name) == value for name, value in self.case)
            and self.threads in (None, where.threads)
            and where.isa == self.isa
            and (where.gpu != "none") == self.gpu
        )

    def newest(self, records: Sequence[Record]) -> Record | None:
        """The last of the records, which are ordered by time, that matches."""
        return next((record for record in reversed(records) if self.matches(record)), None)


@dataclass(frozen=True)
class Requirement:
    """One figure that has to be reached.

    Args:
        group: what is compared.
        what: the sizes.
        figure: what is computed from the record.
        record: which record.
        gate: must be reached.
        goal: should be.
    """

    group: str
    what: str
    figure: Figure
    record: Selector
    gate: float
    goal: float

    @property
    def more_is_better(self) -> bool:
        """Whether the figure has to be above gate and goal."""
        return self.figure == "part of the byte floor"

    def reached(self, value: float, limit: float) -> bool:
        """Whether a value meets a limit."""
        return value >= limit if self.more_is_better else value <= limit


@dataclass(frozen=True)
class Finding:
    """What the records say about a requirement.

    Args:
        requirement: which.
        outcome: see there.
        value: the figure: of ratios the median.
        quartiles: of the ratios, where there are several.
        subject: ours that was measured.
        record: which has it.
        note: why it is wrong.
    """

    requirement: Requirement
    outcome: Outcome
    value: float | None = None
    quartiles: tuple[float, float] | None = None
    subject: str = ""
    record: Record | None = None
    note: str = ""


def find(requirement: Requirement, records: Sequence[Record]) -> Finding:
    """The verdict of the newest record that speaks of a requirement."""
    record = requirement.record.newest(records)
    subject = None if record is None else our_subject(record)
    if record is None or subject is None:
        return Finding(requirement, "not run")
    if subject not in record.results:
        return Finding(requirement, "wrong", subject=subject, record=record, note=record.checks[subject].note)
    if requirement.figure == "peak ratio" and PEAK not in record.results[subject]:
        return Finding(requirement, "not run")
    series = _figure(requirement.figure, record, subject)
    value = series.median
    outcome: Outcome = "missed"
    if requirement.reached(value, requirement.gate):
        outcome = "goal met" if requirement.reached(value, requirement.goal) else "gate met"
    quartiles = series.quartiles if len(series.values) > 1 else None
    return Finding(requirement, outcome, value, quartiles, subject, record)


def our_subject(record: Record) -> str | None:
    """What a user of this machine gets: the first backend of ours that is on, or the first network beside the base."""
    names = str(record.case.get("ours" if record.kind == "op" else "models", "")).split(",")
    on = [name for name in names if name in record.checks and record.checks[name].state != "absent"]
    return on[0] if on else None


def _figure(figure: Figure, record: Record, subject: str) -> Series:
    if figure == "time ratio":
        return record.ratio(subject)
    if figure == "peak ratio":
        return record.ratio(subject, PEAK)
    times = record.results[subject][TIME].values
    if record.floor is None:
        raise ValueError(f"a record of kind {record.kind!r} without a floor has no {figure!r}")
    if figure == "times the floor":
        return Series("floors", tuple(time / record.floor.seconds for time in times))
    return Series("part", tuple(record.floor.bytes_seconds / time for time in times if time > 0))


ACMIX = "ACmix-ResNet-50 / ResNet-50"
_SIZES = ("64@56", "128@28", "256@14", "512@7", "128@56-s2", "256@28-s2", "512@14-s2")


def _op(case: str, mode: str, batch: int, dtype: str = "float32", threads: int | None = 2) -> Selector:
    facts = (("case", case), ("mode", mode), ("batch", batch), ("dtype", dtype))
    return Selector("op", facts, threads, gpu=threads is None)


def _network(
    batch: int, kind: str = "model", dtype: str = "float32", threads: int | None = 2, isa: str = "default"
) -> Selector:
    facts = (("models", "acmix_resnet50"), ("base", "conv_resnet50"), ("size", 224), ("batch", batch), ("dtype", dtype))
    return Selector(kind, facts, threads, isa, gpu=threads is None)


def _networks() -> Iterator[Requirement]:
    for held, threads, isa, gate, goal in (
        ("", 2, "default", 1.05, 0.95),
        (", 1 thread", 1, "default", 1.20, 1.05),
        (", AVX2 at most", 2, "avx2", 1.20, 1.05),
    ):
        for batch in (1, 8):
            selector = _network(batch, threads=threads, isa=isa)
            yield Requirement(f"{ACMIX}, latency", f"224², batch {batch}{held}", "time ratio", selector, gate, goal)


def _folding() -> Iterator[Requirement]:
    for form, how in (("", ""), ("@packed", ", weights packed")):
        name = f"X-volution-ResNet-50, re-parameterised{how} / as trained, latency"
        nets = ("models", f"xvolution_resnet50{form}"), ("base", "xvolution_resnet50@trained")
        for batch in (1, 8):
            selector = Selector("model", (*nets, ("size", 224), ("batch", batch), ("dtype", "float32")))
            yield Requirement(name, f"224², batch {batch}", "time ratio", selector, 0.7, 0.5)


def _operators(mode: str, batches: tuple[int, ...], limits: Sequence[tuple[float, float]]) -> Iterator[Requirement]:
    group = "ACmix / conv3×3, " + ("forward" if mode == "forward" else "forward + backward")
    for size, (gate, goal) in zip(_SIZES, limits, strict=True):
        for batch in batches:
            what = f"{size.replace('-s2', ', stride 2')}, batch {batch}"
            yield Requirement(group, what, "time ratio", _op(f"acmix-{size}", mode, batch), gate, goal)


def _floors() -> Iterator[Requirement]:
    names = (
        ("san-64@56", "SAN's `aggregate` over its floor"),
        ("pssa-64@56", "`pixel_shift_attention` of PSSA over its floor"),
    )
    for case, name in names:
        for batch in (1, 8):
            what = f"64@56, batch {batch}"
            yield Requirement(name, what, "times the floor", _op(case, "forward", batch), 3.0, 1.5)


def _gpu() -> Iterator[Requirement]:
    for case, gate, goal in (("64@56", 0.3, 0.5), ("512@7", 0.6, 0.9)):
        selector = _op(f"attend-{case}", "forward", 64, "bfloat16", None)
        name = "GPU: attention forward, part of the byte floor"
        yield Requirement(name, f"{case}, batch 64, bf16", "part of the byte floor", selector, gate, goal)
    for kind, name, gate, goal in (("model", "inference", 1.2, 1.0), ("train", "training step", 1.6, 1.2)):
        selector = _network(64, kind, "bfloat16", None)
        yield Requirement(f"GPU: {ACMIX}, {name}", "224², batch 64, bf16", "time ratio", selector, gate, goal)


def _runtimes() -> Iterator[Requirement]:
    """Standard operators are what every runtime takes; ours are what onnxruntime and OpenVINO run with our library."""
    acmix, limits = ("acmix_resnet50", "conv_resnet50", ACMIX), (1.8, 1.3)
    others = (
        ("acmix_swin_tiny", "swin_tiny", "Swin-ACmix-T / Swin-T", (1.2, 1.0)),
        ("acmix_pvt_tiny", "pvt_v1_tiny", "PVT-ACmix-T / PVT-T", (1.2, 1.0)),
        ("xvolution_resnet50", "conv_resnet50", "X-volution-ResNet-50 / ResNet-50", (1.4, 1.0)),
        ("san10", "san10@pytorch", "SAN-10 / SAN-10 in PyTorch", (2.0, 1.0)),
    )
    for operators, name in (("convattn", "our operators"), ("standard", "standard operators")):
        for ours, base, group, (gate, goal) in ((*acmix, limits), *others):
            for batch in (1, 8):
                selector = _exported(ours, base, batch, "onnxruntime", operators)
                what = f"224², batch {batch}, {name}"
                yield Requirement(f"onnxruntime: {group}", what, "time ratio", selector, gate, goal)
    for operators, name, batches in (("convattn", "our operators", (1, 8)), ("standard", "standard operators", (1,))):
        for batch in batches:
            selector = _exported(*acmix[:2], batch, "openvino", operators)
            yield Requirement(f"OpenVINO: {ACMIX}", f"224², batch {batch}, {name}", "time ratio", selector, 1.5, 1.2)
    selector = _exported(*acmix[:2], 1, "onnxruntime", "convattn", "int8")
    yield Requirement(f"onnxruntime: {ACMIX}", "224², batch 1, int8, our operators", "time ratio", selector, 1.5, 1.3)


def _exported(ours: str, base: str, batch: int, runtime: str, operators: str, dtype: str = "float32") -> Selector:
    nets = ("models", ours), ("base", base), ("size", 224), ("batch", batch), ("dtype", dtype)
    return Selector("runtime", (*nets, ("runtime", runtime), ("operators", operators)))


def _half() -> Iterator[Requirement]:
    for batch in (1, 8):
        selector = _network(batch, dtype="bfloat16")
        yield Requirement(f"{ACMIX}, latency", f"224², batch {batch}, bfloat16", "time ratio", selector, 1.05, 0.95)


FORWARD_LIMITS = ((1.15, 0.95), (0.90, 0.75), (0.70, 0.55), (0.62, 0.50), (1.9, 1.6), (1.5, 1.2), (1.1, 0.9))
TRAIN_LIMITS = ((1.65, 1.3), (1.1, 0.9), (0.75, 0.6), (0.65, 0.5), (2.4, 1.7), (2.0, 1.5), (1.4, 1.2))
_STEP = _network(8, "train")

REQUIREMENTS: tuple[Requirement, ...] = (
    *_networks(),
    *_half(),
    *_operators("forward", (1, 8), FORWARD_LIMITS),
    Requirement(f"{ACMIX}, inference peak memory", "224², batch 8", "peak ratio", _network(8), 1.6, 1.2),
    *_operators("train", (8,), TRAIN_LIMITS),
    Requirement(f"{ACMIX}, training step", "224², batch 8", "time ratio", _STEP, 1.15, 1.0),
    Requirement(f"{ACMIX}, training peak memory", "224², batch 8", "peak ratio", _STEP, 1.2, 1.0),
    *_floors(),
    *_folding(),
    *_runtimes(),
    *_gpu(),
)
"""The gates and goals; ratios are over the plain convolution, the plain network, or the network as trained."""
