"""A table's lines as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

from benchmarks.machine import day_of
from convattn.publishing import markdown_table
from reproduce.entries import ABOUT, Entry, Part, Scale
from reproduce.lines import NOT_RUN, Line, command, signed
from reproduce.statistics import Gain

Lines: TypeAlias = Mapping[Scale, Sequence[Line]]
"""A table's lines by scale."""


def to_csv(entry: Entry, lines: Lines) -> str:
    """Every number of a table, unrounded, a line each."""
    rows = [_numbers(entry, part, line) for part in entry.parts for line in lines[part.scale]]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _numbers(entry: Entry, part: Part, line: Line) -> dict[str, object]:
    gain = line.gain
    return {
        "table": entry.id,
        "scale": part.scale,
        "row": line.row,
        "quantity": line.quantity.name,
        "unit": line.quantity.unit,
        "published": line.published,
        "ours": NOT_RUN if not line.is_run and not line.seeds[0] else _exact(line.ours),
        "deviation": _exact(line.deviation),
        "difference": line.difference,
        "published gain": _exact(line.published_gain),
        "gain": _exact(gain.mean if gain else None),
        "gain, 95 % from": _exact(gain.interval[0] if gain and gain.interval else None),
        "gain, 95 % to": _exact(gain.interval[1] if gain and gain.interval else None),
        "p of the paired t-test": _exact(gain.t_test if gain else None),
        "p, Holm": _exact(line.corrected),
        "p of Wilcoxon's test": _exact(gain.wilcoxon if gain else None),
        "seeds": line.seeds[0],
        "seeds wanted": line.seeds[1],
        "values": by_seed(line.runs, line.values),
        "commit": line.commit,
        "command": line.command,
        "why": " ".join(line.why),
        "note": line.note,
    }


def by_seed(runs: Sequence[int], values: Sequence[float]) -> str:
    """The values of runs; each with its seed where these are not 0, 1, 2 and so on.

    Example:
        >>> by_seed([0, 1], [97.5, 98.0]), by_seed([0, 4], [97.5, 98.0])
        ('97.5 98.0', '0:97.5 4:98.0')
    """
    in_order = list(runs) == list(range(len(runs)))
    return " ".join(
        _exact(value) if in_order else f"{seed}:{_exact(value)}" for seed, value in zip(runs, values, strict=True)
    )


def _exact(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def is_one_go(part: Part) -> bool:
    """Whether one command and commit make a whole table, with reasons next to the numbers."""
    return part.scale in ("count", "speed")


def headings(part: Part, lines: Sequence[Line]) -> list[str]:
    """Of the columns that a part has: gains and commits only where they say something."""
    names = ["", "", "published", "ours", "difference"]
    if is_one_go(part):
        return [*names, "why"]
    if has_gains(lines):
        of_gains = "difference" if part.comparable else "difference of gains"
        names = [*names[:4], "published gain", "our gain [95 %]", "p (t / Holm / Wilcoxon)", of_gains]
    return [*names, "seeds", *(["commit"] if has_commits(lines) else [])]


def has_commits(lines: Sequence[Line]) -> bool:
    """Whether lines of one table are of several versions of the code."""
    return len({line.commit for line in lines if line.is_run}) > 1


def has_gains(lines: Sequence[Line]) -> bool:
    """Whether any line is compared with a baseline."""
    return any(line.gain is not None for line in lines)


def cells(part: Part, line: Line, lines: Sequence[Line]) -> list[str]:
    """The cells under :func:`headings`, the row's label first."""
    unit = f", {line.quantity.unit}" if line.quantity.unit else ""
    found = [line.row, f"{line.quantity.name}{unit}", line.published or "–", line.shown]
    if is_one_go(part):
        return [*found, line.difference or "–", " ".join(line.why)]
    if has_gains(lines):
        found += [signed(line.published_gain), "baseline" if line.baseline else with_interval(line.gain), chances(line)]
    found += [line.difference or "–", f"{line.seeds[0]} of {line.seeds[1]}"]
    return [*found, line.commit or "–"] if has_commits(lines) else found


def commits(lines: Sequence[Line]) -> str:
    """Of the code that made a table, with their days."""
    every = dict.fromkeys(name for line in lines for name in line.commit.split(", ") if name)
    return ", ".join(f"{name} of {day_of(name)}" if day_of(name) else name for name in every)


def with_interval(gain: Gain | None) -> str:
    """A gain for people, with its interval where there is one.

    Example:
        >>> with_interval(Gain(1.25, 0.01, 0.06, (0.5, 2.0))), with_interval(Gain(1.25, None, None))
        ('+1.2 [+0.5, +2.0]', '+1.2')
    """
    if gain is None or gain.interval is None:
        return signed(gain.mean if gain else None)
    low, high = map(signed, gain.interval)
    return f"{signed(gain.mean)} [{low}, {high}]"


def chances(line: Line) -> str:
    """The p of the t-test, as it is and corrected, and of Wilcoxon's, for people."""
    if line.gain is None:
        return "–"
    every = (line.gain.t_test, line.corrected, line.gain.wilcoxon)
    return " / ".join("–" if p is None else f"{p:.2g}" for p in every)


def merged(lines: Sequence[Line]) -> list[list[Line]]:
    """A row's lines together where it was not run, each alone where it was."""
    found: list[list[Line]] = []
    for _, group in groupby(lines, key=lambda line: line.row):
        of_row = list(group)
        found += [of_row] if not any(line.is_run for line in of_row) else [[line] for line in of_row]
    return found


def names_and_published(lines: Sequence[Line]) -> tuple[str, str]:
    """The quantities of a row that was not run, and their published figures."""
    lines = [line for line in lines if line.published] or lines
    units = dict.fromkeys(line.quantity.unit for line in lines)
    names = ", ".join(line.quantity.name for line in lines)
    unit = f", {next(iter(units))}" if len(units) == 1 and any(units) else ""
    published = " / ".join(line.published or "–" for line in lines)
    return names + unit, published if any(line.published for line in lines) else "–"


def to_markdown(entry: Entry, lines: Lines) -> str:
    """A table as a page of Markdown: a section for every scale."""
    text = [f"# {entry.title}", "", entry.caption + "."]
    if any(line.is_run for of_part in lines.values() for line in of_part):
        text += ["", f"![{entry.title} as a chart]({entry.id}.png)"]
    for part in entry.parts:
        of_part = lines[part.scale]
        text += ["", f"## {part.scale}: {ABOUT[part.scale]}", "", f"Needs {part.need}; {part.time}.", ""]
        at = f" at {commits(of_part)}" if commits(of_part) else ""
        text += [f"`{command(entry, part)}`{at}", ""]
        text += _markdown_table(part, of_part)
        reasons = notes(part, of_part)
        text += ["", *(f"- {reason}" for reason in reasons)] if reasons else []
        text += _markdown_commands(part, of_part)
    return "\n".join(text) + "\n"


def _markdown_commands(part: Part, lines: Sequence[Line]) -> list[str]:
    """Every row's own command, once."""
    if is_one_go(part):
        return []
    found = dict.fromkeys((line.row, line.command) for line in lines)
    starts = [f"{words}  # the backbone of {', '.join(rows)}" for words, rows in backbones([part]).items()]
    return ["", "```sh", *starts, *(f"{seeded(words, part.runs)}  # {row}" for row, words in found), "```"]


def seeded(words: str, runs: int) -> str:
    """A command for each of so many seeds, as a line of the shell.

    Example:
        >>> seeded("convattn train", 1), seeded("convattn train", 3)
        ('convattn train', 'for seed in 0 1 2; do convattn train seed=$seed; done')
    """
    seeds = " ".join(map(str, range(runs)))
    return words if runs == 1 else f"for seed in {seeds}; do {words} seed=$seed; done"


def backbones(parts: Iterable[Part]) -> dict[str, list[str]]:
    """The commands of the classifiers that rows on the papers' own data start from, with these rows."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for row in part.rows if part.scale == "full" else ():
            if row.setting is not None and row.setting.backbone is not None:
                found.setdefault(row.setting.backbone.command(), []).append(row.label)
    return found


def notes(part: Part, lines: Sequence[Line]) -> list[str]:
    """The text under a table: each sentence once, after the rows that it is for."""
    if is_one_go(part):
        return []
    found: dict[str, list[str]] = {}
    for line in lines:
        for reason in line.why:
            found.setdefault(reason, []).append(line.row)
    if part.why and any(line.is_run for line in lines):
        found.setdefault(part.why, [])
    rows = {line.row for line in lines}
    return [
        reason if reason == part.why or set(places) == rows else f"{', '.join(dict.fromkeys(places))}: {reason}"
        for reason, places in found.items()
    ]


def pivoted(part: Part, lines: Sequence[Line]) -> list[list[str]] | None:
    """A table over epochs or depths: a row for every line of its chart; None for other tables, or before a run."""
    if part.read == "figures" or not any(line.is_run for line in lines):
        return None
    found: dict[tuple[str, str], dict[int, str]] = {}
    for line in lines:
        name, _, place = line.quantity.name.partition(f" at {part.chart} ")
        cells_of = found.setdefault((line.row, name), {})
        if place:
            cells_of[int(place)] = line.shown
    places = sorted({place for of_row in found.values() for place in of_row})
    head = ["", "", *(f"{part.chart} {place}" for place in places)]
    return [head, *([*names, *(of_row.get(place, NOT_RUN) for place in places)] for names, of_row in found.items())]


def _markdown_table(part: Part, lines: Sequence[Line]) -> list[str]:
    table = pivoted(part, lines)
    if table is None:
        table = [headings(part, lines)]
        for group in merged(lines):
            row = cells(part, group[0], lines)
            if not group[0].is_run:
                row[1], row[2] = names_and_published(group)
            table.append(row)
    return markdown_table(table[0], table[1:])
