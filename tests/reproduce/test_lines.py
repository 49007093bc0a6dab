"""Differences, gains and what is shown of them."""

import json

import pytest

from reproduce.entries import Entry, Part, Quantity, Row
from reproduce.lines import lines_of, rounding, signed
from reproduce.results import Measured, Results
from reproduce.tables import to_csv, to_markdown

SCORE = Quantity("top-1", "%", "accuracy")
ROWS = (
    Row("plain", {"top-1": "80.0"}, baseline=True),
    Row("ours", {"top-1": "81.5"}),
    Row("not done", {"top-1": "82.0"}),
)


class Known(Results):
    """Results that were handed in."""

    def __init__(self, tmp_path, values):
        super().__init__(tmp_path, seeds=3)
        self.values = values

    def of(self, entry, part, row):
        found = self.values.get(row.label)
        return None if found is None else Measured(found, "abc", 3)


def made(scale, rows, values, tmp_path, why="because"):
    part = Part(scale, (SCORE,), rows, "seconds", why=why)
    entry = Entry("acmix", "table 99", "A table", (part,))
    return entry, lines_of(entry, part, Known(tmp_path, values))


def by_seed(*values):
    return {seed: {"accuracy": value} for seed, value in enumerate(values)}


def test_small_runs_are_compared_by_their_gain(tmp_path):
    values = {"plain": by_seed(90.0, 92.0, 91.0), "ours": by_seed(91.0, 95.0, 92.0)}
    entry, (plain, ours, missing) = made("digits", ROWS, values, tmp_path)
    assert (plain.shown, plain.gain, plain.difference) == ("91.0 ± 1.0", None, "")
    assert (ours.gain.mean, ours.published_gain) == (pytest.approx(5 / 3), pytest.approx(1.5))
    assert ours.difference == "+0.2"
    assert ours.why == ("because",)
    assert (missing.shown, missing.seeds) == ("not run", (0, 3))
    low, high = ours.gain.interval
    assert low < 0 < ours.gain.mean < high
    assert ours.corrected == ours.gain.t_test, "one comparison"
    text = to_markdown(entry, {"digits": (plain, ours, missing)})
    assert "| +1.7 [−1.2, +4.5] |" in text
    assert "| not done | top-1, % | 82.0 | not run |" in text
    rows = to_csv(entry, {"digits": (plain, ours, missing)}).splitlines()
    assert "91.0 95.0 92.0" in rows[2]
    assert "not run" in rows[3]


def test_all_rows_of_a_quantity_are_corrected_together(tmp_path):
    rows = (ROWS[0], *(Row(name, {}) for name in ("a", "b", "c")))
    values = {"plain": by_seed(90.0, 92.0, 91.0), "a": by_seed(93.0, 95.1, 94.0), "b": by_seed(91.0, 92.0, 93.0)}
    _, (plain, a, b, c) = made("digits", rows, values, tmp_path)
    assert (plain.corrected, c.corrected) == (None, None)
    assert a.corrected == pytest.approx(2 * a.gain.t_test), "the least of two"
    assert b.corrected == pytest.approx(b.gain.t_test)


def test_pairs_are_of_one_seed(tmp_path):
    values = {"plain": {0: {"accuracy": 90.0}, 2: {"accuracy": 80.0}}, "ours": {2: {"accuracy": 81.0}}}
    _, (_, ours, _) = made("digits", ROWS, values, tmp_path)
    assert ours.gain.mean == 1.0
    assert ours.seeds == (1, 3)


def test_full_runs_are_compared_as_they_are(tmp_path):
    _, (plain, *_) = made("full", ROWS, {"plain": by_seed(79.0)}, tmp_path)
    assert (plain.difference, plain.why) == ("−1.0", ("because",))


def test_a_row_whose_quantity_was_not_measured_does_not_say_not_run(tmp_path):
    _, (plain, *_) = made("full", ROWS, {"plain": {0: {"other": 1.0}}}, tmp_path)
    assert (plain.is_run, plain.shown) == (False, "not measured")


def test_rounding():
    assert rounding("2.3", 2.2501)
    assert rounding("13", 13.4)
    assert not rounding("2.3", 2.24)
    assert signed(-0.001) == "0.0"


def test_counts_of_other_code_are_not_shown(tmp_path):
    row = Row("a", {"n": "2"}, count=lambda: {"n": 2.0})
    part = Part("count", (Quantity("n", "", "n"),), (row,), "seconds")
    entry, results = Entry("acmix", "table 99", "A table", (part,)), Results(tmp_path)
    results.keep_counts(entry, {"a": {"n": 2.0}})
    assert lines_of(entry, part, results)[0].ours == 2.0
    kept = json.loads((tmp_path / "counts.json").read_text())
    kept[entry.id]["source"] = "another"
    (tmp_path / "counts.json").write_text(json.dumps(kept))
    assert lines_of(entry, part, results)[0].shown == "not run"
    assert lines_of(entry, part, Results(tmp_path, other_code=True))[0].ours == 2.0
