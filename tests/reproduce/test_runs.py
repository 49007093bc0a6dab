"""Runs by content: where they lie, what is read from them, which ones count as done."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from convattn.errors import UserError
from convattn.tasks.run_folder import RunFolder
from reproduce.catalogue import find_entries
from reproduce.entries import Entry, Part, Row
from reproduce.results import Results
from reproduce.runs import Run, epochs_done, execute, find_finished, make_run, read_figures
from reproduce.settings import Setting
from reproduce.trained import quantities

RESULT = {"finished": True, "score": 0.5, "best_epoch": 2, "epochs": 2, "parameters": 1_500_000, "seconds": 1.0}
RESULT |= {"weights": "weights.safetensors", "report": "report.html", "figures": {"box_AP": 0.25, "box_APs": None}}


def write(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def finished(folder: RunFolder) -> RunFolder:
    """A run's folder with all that is read from it."""
    folder.path.mkdir(parents=True)
    folder.summary.write_text(json.dumps(RESULT))
    columns = ["epoch", "step", "train_loss", "box_AP", "box_APs", "lr", "seconds"]
    write(folder.metrics, [columns, [1, 9, 0.5, 0.125, "", 0.1, 2.0], [2, 18, 0.4, 0.25, 0.5, 0.0, 4.0]])
    columns = ["epoch", "depth", "layer", "alpha", "beta"]
    write(folder.paths, [columns, [1, 0, "a", 9, 9], [2, 0, "a", -0.5, 0.25], [2, 1, "b", 0.0, 1.0]])
    return folder


def made(seed: int = 0, **overrides: object) -> Run:
    return make_run(Setting("digits", {"model": "san10", **overrides}), seed)


def test_a_run_is_named_by_what_it_trains():
    names = {made().name, made(seed=1).name, made(epochs=3).name}
    assert len(names) == 3
    assert made().name == made().name
    with pytest.raises(UserError, match="unknown key 'epoch'"):
        made(epoch=3)


def test_figures_are_in_per_cent_and_what_was_not_measured_is_left_out(tmp_path):
    folder = finished(made().folder(tmp_path))
    assert read_figures(folder, "figures") == {"box_AP": 25.0, "parameters": 1.5}
    assert epochs_done(folder) == 2


def test_figures_of_every_epoch(tmp_path):
    found = read_figures(finished(made().folder(tmp_path)), "epochs")
    assert found == {"box_AP at epoch 1": 12.5, "box_AP at epoch 2": 25.0, "box_APs at epoch 2": 50.0}


def test_rates_are_those_of_the_last_epoch_and_without_a_logarithm_of_nothing(tmp_path):
    found = read_figures(finished(made().folder(tmp_path)), "rates")
    assert found["|α| at depth 0"] == 0.5
    assert found["log |α/β| at depth 0"] == pytest.approx(math.log(2))
    assert found["|β| at depth 1"] == 1.0
    assert "log |α/β| at depth 1" not in found


def test_only_finished_runs_of_this_code_count_unless_asked(tmp_path):
    run = made()
    assert find_finished(run, tmp_path, other_code=True) is None
    other = finished(RunFolder(tmp_path / f"{run.name.partition('-')[0]}-00000000"))
    assert find_finished(run, tmp_path, other_code=False) is None
    assert find_finished(run, tmp_path, other_code=True) == other
    own = finished(run.folder(tmp_path))
    assert find_finished(run, tmp_path, other_code=True) == own
    own.summary.unlink()
    assert find_finished(run, tmp_path, other_code=False) is None
    assert read_figures(own, "figures") == {}


def test_a_finished_run_is_left_as_it_is_but_for_its_checkpoints(tmp_path):
    run = made()
    folder = finished(run.folder(tmp_path))
    folder.last.parent.mkdir()
    folder.last.write_bytes(b"large")
    kept = {path.name: path.read_bytes() for path in folder.path.glob("*.*")}
    execute(run, tmp_path, None, lambda: False, "abc")
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == kept


def test_a_later_command_with_fewer_seeds_hides_none_that_are_done(tmp_path):
    (entry,) = find_entries(["xvolution-table4"])
    part = entry.part("digits")
    row = part.rows[0]
    for seed in (0, 1, 2, 4):
        finished(make_run(row.setting, seed).folder(tmp_path / "runs"))
    assert {seeds: list(Results(tmp_path, seeds).of(entry, part, row).values) for seeds in (2, 5)} == {
        2: [0, 1, 2],
        5: [0, 1, 2, 4],
    }
    assert Results(tmp_path, 2).of(entry, part, row).wanted == 3
    assert Results(tmp_path, 5).of(entry, part, row).wanted == 5


def test_top5_that_a_run_did_not_note_is_that_of_its_weights(tmp_path):
    tiny = {"model": "san10", "epochs": 1, "data.image_size": 16, "batch_size": 96}
    row = Row("a", setting=Setting("digits", tiny))
    part = Part("digits", quantities("top1", "top5"), (row,), "seconds")
    entry, run = Entry("acmix", "table 99", "A table", (part,)), make_run(row.setting, 0)
    execute(run, Results(tmp_path).runs, None, lambda: False, "abc")
    noted = Results(tmp_path).of(entry, part, row).values[0]
    assert 100 > noted["top5"] > noted["accuracy"]
    summary = run.folder(Results(tmp_path).runs).summary
    kept = json.loads(summary.read_text())
    del kept["figures"]["top5"]
    summary.write_text(json.dumps(kept))
    again = Results(tmp_path)
    assert "top5" not in again.of(entry, replace(part, quantities=quantities("top1")), row).values[0]
    assert again.of(entry, part, row).values[0] == pytest.approx(noted)
