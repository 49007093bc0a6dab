"""The pages of tables: what the records say, every table of its paper, and how they come into the repository."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.machine import day_of
from benchmarks.record import read_record
from reproduce import publish
from reproduce.catalogue import ENTRIES, find_entries
from reproduce.entries import Entry, Part
from reproduce.lines import Line
from reproduce.records import values_of
from reproduce.results import Results
from reproduce.writing import Writer

ROOT = Path(__file__).parents[2]

OPTIONAL = {"clipart"}
"""Scales whose pictures are not everywhere: a table may be published without them."""

COMPUTED = [entry for entry in ENTRIES if entry.parts]
each_table = pytest.mark.parametrize("entry", COMPUTED, ids=[entry.id for entry in COMPUTED])


def records(entry: Entry, root: Path = ROOT) -> list[dict[str, str]]:
    with (root / publish.RECORDS / f"{entry.id}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def section(entry: Entry, part: Part, root: Path = ROOT) -> list[list[str]]:
    """The cells of a table at one scale on its page."""
    page = (root / "docs" / publish.PAGES[entry.paper]).read_text(encoding="utf-8")
    (table,) = re.findall(rf"^## {entry.number.capitalize()}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    (scale,) = re.findall(rf"^### {part.scale}: .*?(?=^### |\Z)", table, re.MULTILINE | re.DOTALL)
    rows = [line for line in scale.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def shown(part: Part, record: dict[str, str]) -> tuple[str, str]:
    """A record's quantity and number as the page has them."""
    name, _, place = record["quantity"].partition(f" at {part.chart} ")
    (quantity,) = [quantity for quantity in part.quantities if quantity.name == name]
    values = tuple(values_of(record["values"]).values())
    mean = sum(values) / len(values)
    spread = float(record["deviation"]) if record["deviation"] else None
    text = Line(record["row"], quantity, record["published"], mean, spread, (len(values), len(values))).shown
    return (name if place or not quantity.unit else f"{name}, {quantity.unit}"), text


def wrong(entry: Entry, part: Part, root: Path = ROOT) -> list[str]:
    """The records of a table that its page does not show."""
    _, _, *rows = section(entry, part, root)
    found = []
    for record in records(entry, root):
        if record["scale"] == part.scale and record["values"]:
            name, text = shown(part, record)
            if not any(row[:2] == [record["row"], name] and text in row[2:] for row in rows):
                found.append(f"{record['row']}, {record['quantity']}: {text}")
    return found


@each_table
def test_the_page_shows_what_the_records_hold(entry: Entry):
    scales = {record["scale"] for record in records(entry)}
    assert scales == {part.scale for part in entry.parts} - (OPTIONAL - scales)
    assert [line for part in entry.parts if part.scale in scales for line in wrong(entry, part)] == []


@each_table
def test_all_that_needs_no_data_set_was_run(entry: Entry):
    """With the five seeds that the pages promise, a row's quantities alike. Scenes have no large objects."""
    wanted = {"count": 1, "speed": 1, "photos": 5, "digits": 5, "clipart": 5, "scenes": 5}
    numbers: dict[tuple[str, str], set[int]] = {}
    for record in records(entry):
        if record["scale"] in wanted:
            where = (record["scale"], record["row"])
            assert record["commit"] not in ("", "unknown"), where
            if record["scale"] == "scenes" and record["quantity"].endswith("APl"):
                assert record["values"] == "", where
            else:
                numbers.setdefault(where, set()).add(len(record["values"].split()))
    for (scale, row), found in numbers.items():
        assert found == {wanted[scale]}, (scale, row)


def test_times_are_from_records_of_a_quiet_machine():
    for entry in COMPUTED:
        if entry.part("speed") is not None:
            paths = sorted((ROOT / publish.RECORDS / "speed" / entry.id).glob("*.json"))
            assert paths, entry.id
            assert [read_record(path).environment.quiet for path in paths] == ["yes"] * len(paths)


def test_what_is_not_computed_is_on_its_page_with_the_reason():
    for entry in ENTRIES:
        if not entry.parts:
            page = (ROOT / "docs" / publish.PAGES[entry.paper]).read_text(encoding="utf-8")
            assert f"## {entry.number.capitalize()}\n\n{entry.caption}. Not computed. {entry.reason}\n" in page


def test_written_from_a_folder_and_a_changed_number_is_found(tmp_path):
    (entry,) = find_entries(["acmix-table1"])
    results = Results(tmp_path / "out", commit="abc")
    results.keep_counts(entry, {row.label: dict(row.count()) for row in entry.part("count").rows})
    Writer(results).write()
    written = publish.write(tmp_path / "out", make_root(tmp_path))
    root = tmp_path / "repository"
    assert root / "docs" / "tables" / "acmix-table1.png" in written
    assert not (root / "docs" / "tables" / "acmix-table7.png").exists(), "no picture of what was not run"
    assert "](tables/acmix-table1.png)" in (root / "docs" / "acmix-tables.md").read_text()
    assert wrong(entry, entry.part("count"), root) == []
    record = root / publish.RECORDS / "acmix-table1.csv"
    first = records(entry, root)[0]["values"]
    record.write_text(record.read_text().replace(first, json.dumps(2 * float(first))))
    assert wrong(entry, entry.part("count"), root) != []


def make_root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    return root


def test_a_folder_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["publish", str(tmp_path)])
    with pytest.raises(SystemExit, match="python -m reproduce --out"):
        publish.main()


def test_what_a_folder_does_not_have_stays_as_it_was_published(tmp_path):
    """One table is counted again; another, its record of times and its chart are those of before."""
    root = make_root(tmp_path)
    for folder in ("results/reproduce", "docs/tables"):
        shutil.copytree(ROOT / folder, root / folder)
    counted, kept = (find_entries([name])[0] for name in ("acmix-table1", "acmix-table5"))
    results = Results(tmp_path / "out", commit="abc")
    results.keep_counts(counted, {row.label: dict.fromkeys(row.count(), 1.5) for row in counted.part("count").rows})
    publish.write(tmp_path / "out", root)
    assert {record["values"] for record in records(counted, root)} == {"1.5"}
    assert {record["commit"] for record in records(counted, root)} == {"abc"}
    numbers = [[{**record, "note": ""} for record in records(kept, place)] for place in (root, ROOT)]
    assert numbers[0] == numbers[1]
    assert wrong(kept, kept.part("speed"), root) == []
    assert list((root / publish.RECORDS / "speed" / kept.id).glob("*.json"))
    assert (root / "docs" / "tables" / "acmix-table5.png").is_file()
    (commit,) = {record["commit"] for record in records(kept, root) if record["scale"] == "speed"}
    page = (root / "docs" / "acmix-tables.md").read_text(encoding="utf-8")
    assert f"`python -m reproduce acmix-table5 --scale speed` at {commit} of {day_of(commit)}\n" in page
