"""``convattn val`` and ``export`` of a detector and a segmenter, called as a person calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.cli.dense import TASKS
from tests.quick import slow_but

pytestmark = pytest.mark.usefixtures("here")


FILES = {"onnx": ("onnxruntime", "model.onnx"), "openvino": ("openvino", "model.xml")}
"""The runtime of a format, and a file of it."""


def close(ours: dict[str, Any], theirs: dict[str, Any], within: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=within), name


class TestVal:
    @pytest.mark.parametrize("task", TASKS)
    def test_the_runs_own_images(self, task: str, command: Command, runs: dict[str, Path]) -> None:
        result = command("val", "--run", runs[task], "--json")
        assert result.code == 0, result.err
        scores = json.loads(result.out)
        assert scores["images"] == 4
        assert scores["skipped"] == []
        assert len(scores["per_class"]) == (11 if task == "segmentation" else 10)
        summary = json.loads((runs[task] / "summary.json").read_text())["figures"]
        # a loaded network is not in channels_last: another order of sums, near ties may change places
        for name, value in scores["figures"].items():
            assert value == pytest.approx(summary[name], abs=2e-2), name

    def test_for_people(self, command: Command, runs: dict[str, Path], scenes: Path) -> None:
        result = command("val", "--run", runs["instances"])
        head, boxes, masks, columns = result.out.splitlines()[:4]
        assert head == f"mask_rcnn on acmix_resnet18 on {scenes}, its validation images: 4 images"
        for line, kind in ((boxes, "box"), (masks, "mask")):
            assert line.startswith(f"{kind} AP ")
            assert line.count("%") + line.count("–") == 12
        assert columns.split() == ["class", "objects", "box", "AP", "box", "AP50", "mask", "AP", "mask", "AP50"]
        result = command("val", "--run", runs["segmentation"])
        assert result.out.splitlines()[1].startswith("mIoU ")

    @pytest.mark.parametrize("task", slow_but(["instances", "segmentation"], TASKS))
    def test_other_images_are_all_measured_where_they_have_no_split(
        self, task: str, command: Command, runs: dict[str, Path], scenes: Path, here: Path
    ) -> None:
        if task == "segmentation":
            shutil.copytree(scenes / "images" / "train", here / "other" / "images")
            shutil.copytree(scenes / "labels" / "train", here / "other" / "labels")
            data = here / "other"
        else:
            shutil.copytree(scenes / "images" / "train", here / "other" / "images")
            shutil.copy(scenes / "annotations" / "instances_train.json", here / "other" / "labels.json")
            data = here / "other" / "labels.json"
        for source in (runs[task], runs[task] / "weights.safetensors"):
            for place in {data, here / "other"}:
                result = command("val", "--run", source, "--data", place, "--json")
                assert result.code == 0, result.err
                assert json.loads(result.out)["images"] == 8

    @pytest.mark.parametrize("task", ["detection", "segmentation"])
    def test_a_split_is_measured_on_its_validation_part_alone(
        self, task: str, command: Command, runs: dict[str, Path], scenes: Path, here: Path
    ) -> None:
        shutil.copytree(scenes, here / "copy")
        ours = json.loads(command("val", "--run", runs[task], "--json").out)
        theirs = json.loads(command("val", "--run", runs[task] / "weights.safetensors", "--data", "copy", "--json").out)
        close(theirs["figures"], ours["figures"])
        assert theirs["images"] == 4

    @pytest.mark.parametrize("task", TASKS)
    def test_what_is_wrong_is_left_out_and_listed(
        self, task: str, command: Command, runs: dict[str, Path], scenes: Path, here: Path
    ) -> None:
        shutil.copytree(scenes, here / "copy")
        (here / "copy" / "images" / "val" / "00002.png").write_bytes(b"")
        result = command("val", "--run", runs[task], "--data", "copy")
        assert result.code == 0, result.err
        assert "3 images" in result.out
        assert "left out, since something is wrong with them: 1" in result.err
        assert "00002.png" in result.err

    def test_classes_that_do_not_fit(self, command: Command, runs: dict[str, Path], scenes: Path, here: Path) -> None:
        shutil.copytree(scenes, here / "copy")
        for split in ("train", "val"):
            file = here / "copy" / "annotations" / f"instances_{split}.json"
            content = json.loads(file.read_text())
            content["categories"][0]["name"] = "nought"
            file.write_text(json.dumps(content))
        result = command("val", "--run", runs["detection"], "--data", "copy")
        assert result.code == 2
        assert "its 10 classes (nought, 1, 2, 3, 4 and 5 more) are not the 10 of the model" in result.err
        (here / "copy" / "classes.txt").write_text("a\nb\n")
        assert command("val", "--run", runs["segmentation"], "--data", "copy").code == 2

    def test_weights_without_a_run_need_images(self, command: Command, runs: dict[str, Path], here: Path) -> None:
        shutil.copy(runs["detection"] / "weights.safetensors", here)
        result = command("val", "--run", "weights.safetensors")
        assert result.code == 2
        assert "give some with --data" in result.err

    @pytest.mark.parametrize("task", slow_but(["segmentation"], TASKS))
    def test_the_last_weights_find_the_runs_images(self, task: str, command: Command, runs: dict[str, Path]) -> None:
        result = command("val", "--run", runs[task] / "last.safetensors", "--json")
        assert json.loads(result.out)["images"] == 4, result.err


@pytest.mark.parametrize("task", slow_but(["detection"], TASKS))
@pytest.mark.parametrize("to", slow_but(["onnx"], FILES))
def test_an_exported_file_gives_what_the_run_gives(
    command: Command, runs: dict[str, Path], scenes: Path, here: Path, task: str, to: str
) -> None:
    package, file = FILES[to][0], here / FILES[to][1]
    pytest.importorskip(package, reason="needs pip install 'convattn[export]'")
    made = command("export", runs[task], "--to", to, "--out", file, "--data", scenes / "images" / "val")
    assert made.code == 0, made.err
    figures = []
    for source, out in ((runs[task], "run"), (file, "file")):
        options = [] if task == "segmentation" else ["--min-score", 0.2]
        assert command("predict", scenes / "images" / "val", "--run", source, "--out", out, *options).code == 0
        measured = command("val", "--run", source, "--data", scenes, "--json")
        assert measured.code == 0, measured.err
        figures.append(json.loads(measured.out)["figures"])
    close(figures[1], figures[0], within=1e-3)
    if task == "segmentation":
        names = sorted(path.name for path in (here / "run" / "labels").glob("*.png"))
        pairs = [[np.asarray(Image.open(here / out / "labels" / name)) for out in ("run", "file")] for name in names]
        assert pairs
        assert all((one != other).mean() < 1e-3 for one, other in pairs)
    else:
        one, other = (json.loads((here / out / "annotations.json").read_text()) for out in ("run", "file"))
        assert one["images"] == other["images"]
        assert [a["category_id"] for a in one["annotations"]] == [a["category_id"] for a in other["annotations"]]
        for mine, theirs in zip(one["annotations"], other["annotations"], strict=True):
            assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=0.1)
