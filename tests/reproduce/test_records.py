"""The published records stand in for runs whose folders are gone: the same numbers, and no run is trained again."""

import csv

import pytest

from reproduce.catalogue import ENTRIES
from reproduce.command import runs_of
from reproduce.entries import SMALL_SCALES, Entry, Part
from reproduce.lines import lines_of
from reproduce.records import RECORDS
from reproduce.results import Results

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
        assert line.values == tuple(map(float, row["values"].split()))
        assert (line.commit, line.command) == (row["commit"], row["command"])
        assert ("" if line.gain is None else f"{line.gain.mean:.9f}") == (row["gain"] and f"{float(row['gain']):.9f}")


@pytest.mark.parametrize(("entry", "part"), RECORDED[:1])
def test_records_are_asked_for(entry: Entry, part: Part, tmp_path):
    assert not any(line.is_run for line in lines_of(entry, part, Results(tmp_path)))
    for other_code in (False, True):
        results = Results(tmp_path, other_code=other_code)
        trained = [results.is_trained(run) for run, _ in runs_of([(entry, part)], results).values()]
        assert trained == [other_code] * len(trained)
