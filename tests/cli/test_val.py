"""``convattn val`` on a run that was really trained."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import COLORS, Command, paint


def test_the_runs_own_images(command: Command, trained: Path) -> None:
    result = command("val", "--run", trained, "--json")
    assert result.code == 0
    scores = json.loads(result.out)
    summary = json.loads((trained / "summary.json").read_text())
    assert scores["images"] == 12
    assert scores["top1"] == pytest.approx(summary["accuracy"])
    assert scores["top5"] == 1
    assert [one["name"] for one in scores["per_class"]] == list(COLORS)
    assert scores["skipped"] == [{"path": "red/broken.png", "reason": "the file is empty"}]


@pytest.mark.parametrize("file", ["checkpoints/last.ckpt", "checkpoints/best.ckpt", "last.safetensors"])
def test_a_file_of_the_run_finds_its_images(command: Command, trained: Path, photos: Path, file: str) -> None:
    scores = json.loads(command("val", "--run", trained / file, "--json").out)
    assert scores["images"] == 12
    assert scores["weights"] == str(trained / file)
    named = json.loads(command("val", "--run", trained / file, "--data", photos, "--json").out)
    assert named == {**scores, "data": named["data"]}


def test_the_runs_data_named_is_not_measured_on_training_images(command: Command, trained: Path, photos: Path) -> None:
    assert json.loads(command("val", "--run", trained, "--data", photos, "--json").out)["images"] == 12


def test_other_images_for_people(command: Command, trained: Path, tmp_path: Path) -> None:
    for name, color in COLORS.items():
        paint(tmp_path / "other" / name / "1.png", color, 200)
    paint(tmp_path / "other" / "red" / "2.png", COLORS["blue"], 201)
    (tmp_path / "other" / "green" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = command("val", "--run", trained, "--data", tmp_path / "other")
    lines = result.out.splitlines()
    assert lines[0] == f"test_resnet on {tmp_path / 'other'}: 4 images"
    assert lines[1].startswith("top-1 75.00%   top-5 100.00%   loss ")
    assert lines[3].split() == ["red", "50.0%", "1", "2"]
    assert "left out, since something is wrong with them: 1\n  green/cut.png: " in result.err


def test_classes_that_the_model_does_not_know(command: Command, trained: Path, tmp_path: Path) -> None:
    paint(tmp_path / "other" / "red" / "1.png", (0, 0, 0), 1)
    paint(tmp_path / "other" / "pink" / "1.png", (0, 0, 0), 1)
    result = command("val", "--run", trained, "--data", tmp_path / "other")
    assert result.code == 2
    assert "'pink' not among the 3 classes of the model ('blue', 'green', 'red')" in result.err


def test_own_images_that_changed(command: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "photos"
    shutil.copytree(trained.resolve(), run)
    shutil.copytree(photos, data)
    (data / "red").rename(data / "rouge")
    config = (run / "config.yaml").read_text().replace(str(photos), str(data))
    (run / "config.yaml").write_text(config)
    result = command("val", "--run", run)
    assert result.code == 2
    assert "its 3 classes (blue, green, rouge) are not the 3 of the model (blue, green, red)" in result.err
    shutil.rmtree(data)
    assert f"{data}: no such folder" in command("val", "--run", run).err


def test_weights_without_a_run_need_images(command: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "weights.safetensors", tmp_path)
    result = command("val", "--run", tmp_path / "weights.safetensors")
    assert result.code == 2
    assert "give some with --data" in result.err
    result = command("val", "--run", tmp_path / "weights.safetensors", "--data", photos, "--json")
    assert json.loads(result.out)["images"] == 60


def test_no_run(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("val")
    assert (result.code, result.out) == (2, "")
    assert "runs/latest: no such run or weights; train a model first" in result.err


def test_the_test_images_of_a_run_and_of_other_data(command: Command, trained: Path, tmp_path: Path) -> None:
    for part, names in (("train", COLORS), ("test", ("blue", "red"))):
        for name in names:
            for index in range(2):
                paint(tmp_path / "data" / part / name / f"{index}.png", COLORS[name], index)
    run = tmp_path / "run"
    shutil.copytree(trained.resolve(), run)
    config = (run / "config.yaml").read_text()
    own = next(line for line in config.splitlines() if "folder:" in line)
    (run / "config.yaml").write_text(config.replace(own, f"  folder: {tmp_path / 'data'}"))
    for more in ([], ["--data", tmp_path / "data"]):
        scores = json.loads(command("val", "--run", run, "--split", "test", "--json", *more).out)
        assert (scores["images"], scores["data"]) == (4, f"{tmp_path / 'data'}, its test images")
    other = command("val", "--run", trained, "--split", "test")
    assert (other.code, "has no test images; it has train" in other.err) == (2, True)
