"""Records as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from benchmarks.memory import KEPT
from benchmarks.record import PEAK, TIME, Record, milliseconds


def as_table(records: Sequence[Record]) -> Table:
    """Records of one kind as one table, its losses in red and its wins in green."""
    kind = records[0].kind
    return _memory(records[0]) if kind == "memory" else _operators(records) if kind == "op" else _networks(records)


def _caption(record: Record) -> str:
    where = record.environment
    place = where.cpu if where.gpu == "none" else where.gpu
    held = "" if where.isa == "default" else f", {where.isa} at most"
    busy = ", on a busy machine" if where.quiet == "no" else ""
    return escape(f"{place}, {_threads(where.threads)}{held}, kernels {where.kernels}, torch {where.torch}{busy}")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def absences(records: Sequence[Record]) -> list[str]:
    """What could not be measured and why, each once."""
    notes = {
        f"{subject}: {check.note}": None
        for record in records
        for subject, check in record.checks.items()
        if check.state == "absent"
    }
    return list(notes)


def _subjects(record: Record) -> list[str]:
    """Those measured, then those that are wrong."""
    return [*record.results, *(name for name, check in record.checks.items() if check.state == "wrong")]


def _operators(records: Sequence[Record]) -> Table:
    table = Table(title="operators, timed in turns with the convolution", caption=_caption(records[0]))
    for heading in ("case", "pass", "batch", "by"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms (quartiles)", "over conv (quartiles)", "floors"):
        table.add_column(heading, justify="right")
    for record in records:
        head = [str(record.case[name]) for name in ("case", "mode", "batch")]
        for subject in _subjects(record):
            table.add_row(*head, subject, *_operator_cells(record, subject))
            head = ["", "", ""]
        table.add_section()
    return table


def _operator_cells(record: Record, subject: str) -> list[str]:
    if subject not in record.results:
        return [_WRONG]
    times = record.results[subject][TIME]
    floors = "" if record.floor is None else f"{times.median / record.floor.seconds:.1f}"
    return [*_timed(record, subject), floors]


_WRONG = "[bold red]wrong[/]"


def _timed(record: Record, subject: str) -> list[str]:
    times = record.results[subject][TIME]
    low, high = times.quartiles
    shown = f"{milliseconds(times.median)} ({milliseconds(low)}-{milliseconds(high)})"
    if subject == record.base:
        return [shown, "1"]
    ratio = record.ratio(subject)
    low, high = ratio.quartiles
    return [shown, f"{_marked(ratio.median)} ({low:.2f}-{high:.2f})"]


def _networks(records: Sequence[Record]) -> Table:
    what = "training step" if records[0].kind == "train" else "inference, all folded"
    table = Table(title=f"{what}, timed in turns with {records[0].base}", caption=_caption(records[0]))
    for heading in ("size", "batch", "network"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms (quartiles)", "ratio (quartiles)", "peak MiB", "ratio"):
        table.add_column(heading, justify="right")
    for record in records:
        head = [f"{record.case['size']}²", str(record.case["batch"])]
        for subject in _subjects(record):
            table.add_row(*head, subject, *_network_cells(record, subject))
            head = ["", ""]
        table.add_section()
    return table


def _network_cells(record: Record, subject: str) -> list[str]:
    if subject not in record.results:
        return [_WRONG]
    cells, peak = _timed(record, subject), record.results[subject].get(PEAK)
    if peak is None:
        return cells
    ratio = "1" if subject == record.base else _marked(record.ratio(subject, PEAK).median)
    return [*cells, _mib(peak.median), ratio]


def _memory(record: Record) -> Table:
    """Growth of the peak over the time before, bytes kept from forward to backward."""
    case = record.case
    shape = f"{case['batch']}x{case['channels']}x{case['height']}x{case['width']}"
    processes = "1 process" if case["processes"] == 1 else f"{case['processes']} processes, median"
    title = f"forward + backward at {shape}, {case['dtype']}, {processes}"
    table = Table(title=title, caption=_caption(record))
    table.add_column("layer", no_wrap=True)
    for heading in ("peak MiB", "range", "of Conv2d", "kept MiB", "of Conv2d"):
        table.add_column(heading, justify="right", no_wrap=True)
    base = next(iter(record.results.values()))
    for layer, measured in record.results.items():
        peak, kept = measured[PEAK], measured[KEPT]
        low, high = peak.range
        table.add_row(
            layer,
            _mib(peak.median, 1),
            f"{_mib(low, 1)}-{_mib(high, 1)}",
            _times(peak.median, base[PEAK].median),
            _mib(kept.median, 1),
            _times(kept.median, base[KEPT].median),
        )
    return table


def _marked(ratio: float) -> str:
    return f"[{'red' if round(ratio, 2) > 1 else 'green'}]{ratio:.2f}[/]"


def _mib(value: float, digits: int = 0) -> str:
    return f"{value / 2**20:.{digits}f}"


def _times(value: float, base: float) -> str:
    return f"{value / base:.1f}x" if base else "-"
