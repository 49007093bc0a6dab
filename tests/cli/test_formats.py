"""Data sets of other formats than folders and COCO, as a person gives them to the commands."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.data import same_data
from tests.data.ranges import serving
from tests.tasks.test_formats import SETTINGS


def test_what_is_to_be_learned_of_a_format_is_asked(command: Command, tmp_path: Path) -> None:
    result = command("train", "--data", same_data.yolo(tmp_path))
    assert result.code == 2
    assert "data.yaml holds YOLO labels: say what is to be learned: --task detection, instances or" in result.err
    wrong = command("train", "--data", tmp_path / "data.yaml", "--task", "classification")
    assert "holds YOLO labels, which do not say a class for each image" in wrong.err


def test_a_run_on_a_table_is_trained_and_measured(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = same_data.table(tmp_path / "data")
    settings = [*SETTINGS["classification"][1], "data.image_size=16", "trainer.loggers=[csv]"]
    done = command("train", "--data", data, "--out", tmp_path / "runs", "--epochs", 1, *settings)
    assert done.code == 0, done.err
    scores = json.loads(command("val", "--run", tmp_path / "runs/latest", "--split", "test", "--json").out)
    assert (scores["images"], scores["skipped"]) == (12, [])
    pytest.importorskip("upath", reason="needs pip install 'convattn[data]'")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with serving(same_data.shards(tmp_path / "shards")) as server:
        there = command(
            "val", "--run", tmp_path / "runs/latest", "--data", f"{server.url}/", "--split", "test", "--json"
        )
        assert command("check-data", f"{server.url}/").out.endswith("nothing is wrong\n")
    assert {**json.loads(there.out), "data": None} == {**scores, "data": None}


def test_folds_hold_out_every_image_once(command: Command, tmp_path: Path) -> None:
    root = same_data.class_folders(tmp_path / "data") / "train"
    settings = [*SETTINGS["classification"][1], "data.image_size=16", "trainer.loggers=[]", "schedule.warmup=0"]
    words = ["train", "--out", tmp_path / "runs", "--epochs", 1, *settings, "--folds", 2]
    done = command(*words, "--data", root)
    assert done.code == 0, done.err
    assert "validation accuracy over 2 folds: " in done.out
    tables = [(run / "predictions.csv").read_text().splitlines()[1:] for run in sorted((tmp_path / "runs").glob("2*"))]
    names = [line.split(",")[1] for table in tables for line in table]
    assert (len(tables), len(names), len(set(names))) == (2, 12, 12)
    own = command(*words, "--data", root.parent)
    assert (own.code, "has validation images of its own" in own.err) == (2, True)
