"""The tables' lines: published, measured, the difference, the gain over the baseline, and the command."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from reproduce.entries import SEEDED, Entry, Part, Quantity, Row
from reproduce.results import Measured, Results
from reproduce.statistics import Gain, deviation, holm, paired

NOTICED = 0.01
"""A relative difference that asks for a sentence."""

NOT_RUN = "not run"


@dataclass(frozen=True)
class Line:
    """One number of a table.

    Args:
        row: its row's label.
        quantity: what it is.
        published: as the paper prints it; "" where it does not.
        ours: the mean over the seeds; None where it was not run or is not measured.
        deviation: over the seeds.
        seeds: how many there are, of how many.
        baseline: whether others are compared with it.
        difference: ours less published, as it is shown; of gains where the numbers themselves are of other things.
        relative: its size beside the published number, for what is counted or timed.
        published_gain: over the baseline, in the paper.
        gain: over the baseline, here.
        corrected: the gain's p of the t-test, corrected by Holm's method for all rows that the table compares.
        command: that makes it.
        commit: of the code.
        why: it differs, and what else is to be said of it.
        values: of every run.
        runs: their seeds.
        note: the part of ``why`` that is of these runs and not of the row.
    """

    row: str
    quantity: Quantity
    published: str
    ours: float | None = None
    deviation: float | None = None
    seeds: tuple[int, int] = (0, 1)
    baseline: bool = False
    difference: str = ""
    relative: float | None = None
    published_gain: float | None = None
    gain: Gain | None = None
    corrected: float | None = None
    command: str = ""
    commit: str = ""
    why: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    runs: tuple[int, ...] = ()
    note: str = ""

    @property
    def is_run(self) -> bool:
        """Whether there is a number of ours."""
        return self.ours is not None

    @property
    def is_apart(self) -> bool:
        """Whether a count is further from the printed number than 1 % and than its rounding."""
        far = self.relative is not None and abs(self.relative) > NOTICED
        return far and self.ours is not None and not rounding(self.published, self.ours)

    @property
    def shown(self) -> str:
        """Ours for people, with its deviation."""
        if self.ours is None:
            return NOT_RUN if not self.seeds[0] else "not measured"
        digits = self.quantity.digits
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        if not self.deviation and self.quantity.unit != "%":
            spread = ""  # counts are the same for every seed
        return f"{self.ours:.{digits}f}{spread}".replace("-", "−")


def lines_of(entry: Entry, part: Part, results: Results) -> list[Line]:
    """All lines of a table at one scale, in its order.

    Where the folder has no number of it, they are those of the published records as a whole: rows of several schedules
    are not compared. On the papers' own data every row is by itself.
    """
    measured = {row.label: results.of(entry, part, row) for row in part.rows}
    if part.scale == "full" or not any(measured.values()):
        measured = {row.label: measured[row.label] or results.earlier(entry, part, row) for row in part.rows}
    return _corrected(
        _line(entry, part, row, quantity, measured, results)
        for row in part.rows
        for quantity in _columns(part, row, measured[row.label])
    )


def _corrected(lines: Iterable[Line]) -> list[Line]:
    """The lines with their p corrected: those of one quantity are one family of tests."""
    found = list(lines)
    families: dict[str, dict[int, float]] = {}
    for place, line in enumerate(found):
        if line.gain is not None and line.gain.t_test is not None:
            families.setdefault(line.quantity.name, {})[place] = line.gain.t_test
    for family in families.values():
        for place, p in zip(family, holm(list(family.values())), strict=True):
            found[place] = replace(found[place], corrected=p)
    return found


def _columns(part: Part, row: Row, ours: Measured | None) -> list[Quantity]:
    """The quantities that a row has: those of its table, or for every epoch or depth one."""
    if part.read == "figures":
        return [one for one in part.quantities if one.name in row.published or ours is None or _has(ours, one.key)]
    keys = dict.fromkeys(key for values in (ours.values.values() if ours else ()) for key in values)
    found = []
    for quantity in part.quantities:
        matching = [key for key in keys if key.startswith(f"{quantity.key} at ")]
        found += [
            Quantity(key.replace(quantity.key, quantity.name), quantity.unit, key, quantity.digits) for key in matching
        ]
    return found or list(part.quantities)


def _has(measured: Measured, key: str) -> bool:
    return any(key in values for values in measured.values.values())


def _line(
    entry: Entry,
    part: Part,
    row: Row,
    quantity: Quantity,
    measured: Mapping[str, Measured | None],
    results: Results,
) -> Line:
    ours, base, published = measured[row.label], part.baseline_of(row), row.published.get(quantity.name, "")
    command = (ours.command if ours else "") or command_of(entry, part, row, results)
    commit = ours.commit if ours else ""
    line = Line(row.label, quantity, published, baseline=row.baseline, command=command, commit=commit)
    values = _values(ours, quantity.key)
    if ours is None or not values:
        wanted = ours.wanted if ours else results.seeds if part.scale in SEEDED else part.runs
        return replace(line, seeds=(len(ours.values) if ours else 0, wanted))
    mean, numbers = statistics.fmean(values.values()), tuple(values.values())
    is_score = part.scale in (*SEEDED, "full") and quantity.unit == "%"
    gain = _gain(values, _values(measured[base.label], quantity.key)) if is_score and base is not None else None
    printed_gain = _published_gain(row, base, quantity.name)
    difference, relative = _difference(part, published, mean, gain, printed_gain)
    line = replace(
        line,
        ours=mean,
        deviation=deviation(numbers),
        seeds=(len(numbers), ours.wanted),
        difference=difference,
        relative=relative,
        published_gain=printed_gain,
        gain=gain,
        values=numbers,
        runs=tuple(values),
        note=ours.note,
    )
    return replace(line, why=tuple(filter(None, (_why(part, row, line), ours.note))))


def _values(measured: Measured | None, key: str) -> dict[int, float]:
    if measured is None:
        return {}
    return {seed: figures[key] for seed, figures in measured.values.items() if key in figures}


def _gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain | None:
    common = sorted(set(ours) & set(theirs))
    if not common:
        return None
    return paired([ours[seed] for seed in common], [theirs[seed] for seed in common])


def _published_gain(row: Row, base: Row | None, name: str) -> float | None:
    if base is None or name not in row.published or name not in base.published:
        return None
    return float(row.published[name]) - float(base.published[name])


def _difference(
    part: Part, published: str, mean: float, gain: Gain | None, printed_gain: float | None
) -> tuple[str, float | None]:
    if part.scale in SEEDED:
        if gain is None or printed_gain is None:
            return "", None
        return signed(gain.mean - printed_gain), None
    if not published:
        return "", None
    given = float(published)
    if part.scale == "full":
        return signed(mean - given), (mean - given) / given if given else None
    if not given:
        return "" if not mean else signed(mean, 3), None
    relative = mean / given - 1
    return f"{signed(100 * relative)} %", relative


def signed(value: float | None, digits: int = 1) -> str:
    """A difference for people.

    Example:
        >>> signed(0.512), signed(-0.01), signed(-1.25, 2), signed(None)
        ('+0.5', '0.0', '−1.25', '–')
    """
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _why(part: Part, row: Row, line: Line) -> str:
    """The sentence kept with the row; else, for a count, that the printed digits hide the difference."""
    kept = row.why.get(line.quantity.name) or row.why.get("")
    if kept:
        return kept
    if part.scale in SEEDED:
        return part.why if line.difference else ""
    large = line.relative is not None and abs(line.relative) > NOTICED
    if not large or line.ours is None:
        return ""
    return part.why or rounding(line.published, line.ours)


def rounding(published: str, ours: float) -> str:
    """What is to be said of a difference that the printed digits hide; "" of a larger one.

    Example:
        >>> rounding("2.3", 2.268)
        'Within the rounding of the printed 2.3.'
        >>> rounding("2.3", 2.2)
        ''
    """
    unit = 10.0 ** -len(published.partition(".")[2])
    hidden = abs(float(published) - ours) <= 0.5 * unit + 1e-9
    return f"Within the rounding of the printed {published}." if hidden else ""


def command(entry: Entry, part: Part) -> str:
    """The command that makes a table at a scale."""
    return f"python -m reproduce {entry.id} --scale {part.scale}"


def command_of(entry: Entry, part: Part, row: Row, results: Results) -> str:
    """The command that makes a row's number: a count or a time by its table, a run by itself."""
    if part.scale in ("count", "speed") or row.setting is None:
        return command(entry, part)
    if part.scale == "full":
        return row.setting.command()
    setting = results.setting(row) or row.setting
    return setting.command(seed=0)
