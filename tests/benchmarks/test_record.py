import dataclasses
import json
import subprocess

import pytest

from benchmarks.machine import PACKAGE, commit, environment
from benchmarks.record import (
    TIME,
    Check,
    Floor,
    Record,
    Series,
    from_json,
    read_record,
    read_records,
    to_json,
    write_record,
)
from convattn.errors import UserError

WHERE = environment(threads=2)


def a_record(**changes: object) -> Record:
    fields = {
        "kind": "memory",
        "taken": "2026-01-02T03:04:05+00:00",
        "environment": WHERE,
        "case": {"batch": 2, "channels": 4, "height": 5, "width": 5, "dtype": "float32"},
        "results": {"ours": {"peak": Series("bytes", (3, 1, 2))}, "theirs": {"peak": Series("bytes", (9,))}},
    }
    return Record(**(fields | changes))


def a_timed_record(**changes: object) -> Record:
    times = {
        name: {TIME: Series("s", values)} for name, values in {"conv": (1.0, 2.0, 4.0), "ours": (2.0, 3.0)}.items()
    }
    fields = {
        "kind": "op",
        "case": {"case": "acmix-8@8", "mode": "forward", "batch": 2, "dtype": "float32", "base": "conv"},
        "results": times,
        "checks": {"ours": Check("right", 1e-7, 1e-4), "theirs": Check("wrong", None, 1e-4, "gives NaN")},
        "floor": Floor(1000, 50, Series("B/s", (100.0, 200.0)), Series("FLOP/s", (5.0,))),
    }
    return a_record(**(fields | changes))


def test_ratios_are_taken_round_by_round():
    record = a_timed_record()
    assert record.ratio("ours").values == (2.0, 1.5)
    assert record.ratio("ours").median == 1.75
    assert a_record(results={"a": {"peak": Series("bytes", (3, 1, 2))}, "b": {"peak": Series("bytes", (9,))}}).ratio(
        "b", "peak"
    ).values == (4.5,)


def test_the_floor_is_the_longer_of_moving_and_multiplying():
    floor = a_timed_record().floor
    assert floor.bytes_seconds == 5.0, "the best bandwidth seen counts"
    assert floor.seconds == 10.0


@pytest.mark.parametrize("record", [a_timed_record(), a_timed_record(checks={}, floor=None)], ids=["full", "bare"])
def test_a_timed_record_survives_the_round_trip(record, tmp_path):
    path = write_record(record, tmp_path)
    assert path.name == "op-acmix-8@8-forward-b2-20260102-030405.json"
    assert read_record(path) == record


def test_records_are_read_in_the_order_of_time(tmp_path):
    for taken in ("2026-01-02T03:04:05+00:00", "2026-01-02T02:30:00-05:00", "2025-12-31T00:00:00+00:00"):
        write_record(a_record(taken=taken), tmp_path)
    assert [record.taken[:13] for record in read_records(tmp_path)] == [
        "2025-12-31T00",
        "2026-01-02T03",
        "2026-01-02T02",
    ]


def test_records_of_before_the_times_can_still_be_read():
    plain = json.loads(to_json(a_record()))
    for name in ("checks", "floor"):
        del plain[name]
    for name in ("gpu", "isa", "kernels", "timm", "triton", "natten", "quiet", "in_use", "spread"):
        del plain["environment"][name]
    assert from_json(json.dumps(plain)).environment.quiet == "unchecked"


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
        ({"kind": "two words"}, r"kind\n.* should be 'memory', 'op', 'model', 'train', 'runtime', 'data' or 'start'"),
        ({"case": {"batch": 2}}, "case.channels is missing"),
        ({"taken": "yesterday"}, r"taken\n.* must be an ISO 8601"),
        ({"taken": "2026-01-02T03:04:05"}, "offset from UTC"),
        ({"case": {}}, "case.batch is missing"),
        ({"results": {}}, "must not be empty"),
        ({"results": {"a": {"x": Series("s", (1,))}, "b": {"y": Series("s", (1,))}}}, "same quantities"),
        ({"results": {"a": {}}}, "same quantities"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_record(**changes)


def test_the_base_must_have_been_measured():
    with pytest.raises(ValueError, match=r"case\.base must be among"):
        a_timed_record(results={"ours": {TIME: Series("s", (1.0,))}})


@pytest.mark.parametrize("values", [(), (-1.0,), (float("nan"),), (float("inf"),), ("3",)])
def test_values_are_finite_numbers(values):
    with pytest.raises(ValueError, match="value"):
        Series("bytes", values)


@pytest.mark.parametrize(
    ("field", "value"), [("commit", ""), ("threads", 0), ("cores", True), ("load", float("nan")), ("cpu", None)]
)
def test_the_environment_is_checked(field, value):
    with pytest.raises(ValueError, match=rf"for Environment\n{field}\n"):
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
        (lambda plain: plain.pop("taken"), "taken is missing"),
        (lambda plain: plain["environment"].pop("load"), "environment.load is missing"),
        (lambda plain: plain["environment"].update(colour="red"), "environment.colour is unknown"),
        (
            lambda plain: plain["environment"].update(isa="mmx"),
            "environment.isa must be 'default', 'avx512', 'avx2' or 'baseline', got 'mmx'",
        ),
        (
            lambda plain: plain["environment"].update(quiet=True),
            "environment.quiet must be 'yes', 'no' or 'unchecked', got True",
        ),
        (
            lambda plain: plain["results"]["ours"]["time"].update(values=[]),
            "results.ours.time.values must have at least 1 item",
        ),
        (
            lambda plain: plain["results"]["ours"]["time"].update(values=3),
            "results.ours.time.values must be a valid array, got 3",
        ),
        (lambda plain: plain["results"]["ours"]["time"].pop("unit"), "results.ours.time.unit is missing"),
        (lambda plain: plain.update(results=[1]), r"results must be an object, got \[1\]"),
        (lambda plain: plain["case"].pop("mode"), "case.mode is missing: a record of kind 'op'"),
        (
            lambda plain: plain["checks"]["ours"].update(state="fine"),
            "checks.ours.state must be 'right', 'wrong' or 'absent', got 'fine'",
        ),
        (lambda plain: plain["floor"]["peak"].update(values=[0]), "floor.peak must be above zero"),
        (lambda plain: plain["floor"].update(bytes=-1), "floor.bytes must be greater than or equal to 0, got -1"),
    ],
)
def test_a_damaged_record_is_refused_with_its_path(tmp_path, damage, message):
    plain = json.loads(to_json(a_timed_record()))
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
