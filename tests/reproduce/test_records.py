"""The published records stand in for runs whose folders are gone: the same numbers, and no run is trained again."""

import csv
from dataclasses import replace

import pytest

from reproduce.catalogue import ENTRIES, find_entries
from reproduce.command import runs_of
from reproduce.entries import SMALL_SCALES, Entry, Part
from reproduce.lines import lines_of
from reproduce.records import RECORDS, values_of
from reproduce.results import Measured, Results
from reproduce.tables import to_csv

RECORDED = [
    pytest.param(entry, part, id=f"{entry.id}-{part.scale}")
    for entry in ENTRIES
    for part in entry.parts
    if part.scale in SMALL_SCALES
]


@pytest.mark.parametrize(("entry", "part"), RECORDED)
def test_a_table_is_the_same_from_its_records(entry: Entry, part: Part, tmp_path):
    with (RECORDS / f"{entry.id}.csv").open(encoding="utf-8", newline="") as file:
        kept = [row for row in csv.DictReader(file) if row["scale"] == part.scale and row["values"]]
    lines = lines_of(entry, part, Results(tmp_path, other_code=True))
    found = {(line.row, line.quantity.name): line for line in lines if line.is_run}
    assert {(row["row"], row["quantity"]) for row in kept} == set(found)
    for row in kept:
        line = found[row["row"], row["quantity"]]
        assert dict(zip(line.runs, line.values, strict=True)) == values_of(row["values"])
        assert (line.commit, line.command) == (row["commit"], row["command"])
        assert ("" if line.gain is None else f"{line.gain.mean:.9f}") == (row["gain"] and f"{float(row['gain']):.9f}")


@pytest.mark.parametrize(("entry", "part"), RECORDED[:1])
def test_records_are_asked_for(entry: Entry, part: Part, tmp_path):
    assert not any(line.is_run for line in lines_of(entry, part, Results(tmp_path)))
    for other_code in (False, True):
        results = Results(tmp_path, other_code=other_code)
        trained = [results.is_trained(run) for run, _ in runs_of([(entry, part)], results).values()]
        assert trained == [other_code] * len(trained)


class Trained(Results):
    """Results with a run of its first row."""

    def of(self, entry: Entry, part: Part, row) -> Measured | None:
        return Measured({0: {"accuracy": 50.0}}) if row is part.rows[0] else None


def test_records_of_an_earlier_schedule_are_shown_whole_or_not_at_all(tmp_path):
    (entry,) = find_entries(["xvolution-table4"])
    part = entry.part("digits")
    longer = tuple(replace(row, setting=replace(row.setting, overrides={"model": "san10"})) for row in part.rows)
    today = replace(part, rows=longer)
    found = lines_of(entry, today, Results(tmp_path, other_code=True))
    before = lines_of(entry, part, Results(tmp_path, other_code=True))
    for old, line in zip(before, found, strict=True):
        assert (line.values, line.gain, line.commit, line.command) == (old.values, old.gain, old.commit, old.command)
        assert f"By an earlier schedule: `{old.command}`." in line.why
        assert old.note == ""
    (tmp_path / f"{entry.id}.csv").write_text(to_csv(replace(entry, parts=(today,)), {"digits": found}))
    assert lines_of(entry, today, Results(tmp_path, other_code=True, published=tmp_path)) == found, "published again"
    first, *others = lines_of(entry, today, Trained(tmp_path, other_code=True))
    assert first.values == (50.0,)
    assert not any(line.is_run for line in others), "rows of two schedules are not compared"
