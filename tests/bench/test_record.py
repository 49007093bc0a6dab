import dataclasses
import json
import subprocess

import pytest

from convattn.bench.machine import PACKAGE, commit, environment
from convattn.bench.record import Record, Series, from_json, read_record, to_json, write_record
from convattn.errors import UserError

WHERE = environment(threads=2)


def a_record(**changes: object) -> Record:
    fields = {
        "kind": "memory",
        "taken": "2026-01-02T03:04:05+00:00",
        "environment": WHERE,
        "case": {"batch": 2, "dtype": "float32"},
        "results": {"ours": {"peak": Series("bytes", (3, 1, 2))}, "theirs": {"peak": Series("bytes", (9,))}},
    }
    return Record(**(fields | changes))


def test_a_record_survives_the_round_trip(tmp_path):
    path = write_record(a_record(), tmp_path / "results")
    assert path.name == "memory-20260102-030405.json"
    assert read_record(path) == a_record()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a temporary file was left behind"


def test_median_and_range():
    series = Series("bytes", (5.0, 1.0, 4.0))
    assert (series.median, series.range) == (4.0, (1.0, 5.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "two words"}, "kind must be"),
        ({"taken": "yesterday"}, "taken must be"),
        ({"taken": "2026-01-02T03:04:05"}, "offset from UTC"),
        ({"case": {}}, "must not be empty"),
        ({"results": {}}, "must not be empty"),
        ({"results": {"a": {"x": Series("s", (1,))}, "b": {"y": Series("s", (1,))}}}, "same quantities"),
        ({"results": {"a": {}}}, "same quantities"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_record(**changes)


@pytest.mark.parametrize("values", [(), (-1.0,), (float("nan"),), (float("inf"),), ("3",)])
def test_values_are_finite_numbers(values):
    with pytest.raises(ValueError, match="value"):
        Series("bytes", values)


@pytest.mark.parametrize(
    ("field", "value"), [("commit", ""), ("threads", 0), ("cores", True), ("load", float("nan")), ("cpu", None)]
)
def test_the_environment_is_checked(field, value):
    with pytest.raises(ValueError, match=f"environment.{field}"):
        dataclasses.replace(WHERE, **{field: value})


def test_the_environment_knows_this_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=False)
    if head.returncode != 0:
        pytest.skip("not a checkout")
    assert commit().removesuffix("-dirty") == head.stdout[:12]
    assert WHERE.threads == 2
    assert WHERE.cores >= 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plain: plain.update(schema=99), "schema must be 1, got 99"),
        (lambda plain: plain.pop("taken"), "taken"),
        (lambda plain: plain["environment"].pop("load"), "load"),
        (lambda plain: plain["environment"].update(colour="red"), "colour"),
        (lambda plain: plain["results"]["ours"]["peak"].update(values=[]), "at least one value"),
        (lambda plain: plain.update(results=[1]), "another type"),
    ],
)
def test_a_damaged_record_is_refused_with_its_path(tmp_path, damage, message):
    plain = json.loads(to_json(a_record()))
    damage(plain)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=message) as refused:
        read_record(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "Expecting value"), ("{", "Expecting property"), ("[]", "schema must"), ("3", "schema must")],
)
def test_what_is_no_record_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_record(tmp_path / "none.json")
