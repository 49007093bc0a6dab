"""``convattn train`` of a detector and a segmenter, called as a person calls it."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.dense import BOXES, PIXELS, SMALL, TASKS

pytestmark = pytest.mark.usefixtures("here")


class TestTrain:
    @pytest.mark.parametrize("task", TASKS)
    def test_it_tells_what_a_person_needs(self, task: str, command: Command, scenes: Path, here: Path) -> None:
        words = [*SMALL, *(PIXELS if task == "segmentation" else BOXES), "model=acmix_resnet14", "data.image_size=64"]
        words += ["memory_format=contiguous"]
        result = command("train", "--task", task, "--data", scenes, *words)
        assert result.code == 0, result.err
        run = (here / "runs" / "latest").resolve()
        classes = 11 if task == "segmentation" else 10
        assert f"on {scenes}: {classes} classes, 8 training and 4 validation images" in result.out
        assert f"recipe folder-{task}: 1 epochs, batch 4" in result.out
        assert {"segmentation": "crops of 64x64 px"}.get(task, "images of their own size") in result.out
        assert "on the CPU, 1 thread\n" in result.out
        assert "4 validation images say little" in result.out
        assert {"detection": "box AP", "instances": "mask AP", "segmentation": "mIoU"}[task] in result.out
        assert f"runs/{run.name}/report.html\n" in result.out
        for noise in ("Lightning", "num_workers", "Warning", "index created", "nan"):
            assert noise not in result.out
        again = command("train", "--resume", "runs/latest")
        assert again.code == 0
        assert "is finished already" in again.out

    def test_a_run_that_measured_nothing_is_shown_again(self, command: Command, scenes: Path, here: Path) -> None:
        shutil.copytree(scenes, here / "data")
        file = here / "data" / "annotations" / "instances_val.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
        words = [*SMALL, *BOXES, "model=acmix_resnet14", "data.image_size=64", "epochs=2"]
        result = command("train", "--task", "detection", "--data", "data", *words)
        assert result.code == 0, result.err
        assert "the validation images have no object: nothing can be measured" in result.out
        again = command("train", "--resume", "runs/latest")
        assert again.code == 0
        for output in (result.out, again.out):
            assert "box AP could not be measured: no validation image has an object (best epoch 2 of 2" in output
            assert "nan" not in output.replace(str(here), "")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--task", "detect"], "Invalid value for '--task'"),
            (["--task", "detection", "--recipe", "scenes-segmentation"], "is for segmentation, not for detection"),
            (
                ["--head", "mask_rcnn"],
                "--head mask_rcnn: say what it is to learn: --task detection, instances or segmentation",
            ),
            (["--task", "classification", "--head", "upernet"], "classification, which has no network.head"),
            (["--task", "detection", "--head", "rcnn"], "network.head"),
            (["--task", "detection", "--head", "upernet"], "upernet does not do detection: take one of faster_rcnn"),
            (["--task", "detection", "--data", "absent"], "absent: no such file or folder"),
            (["--task", "segmentation", "--data", "absent"], "absent: no such folder"),
            (
                ["--recipe", "coco-retinanet-resnet"],
                "brings no images for detection: give a folder of them with --data",
            ),
            (["--resume", "runs/latest", "--task", "detection"], "leave --task out"),
        ],
    )
    def test_a_mistake_is_one_message(self, arguments: list[str], message: str, command: Command, here: Path) -> None:
        result = command("train", *arguments)
        assert (result.code, result.out) == (2, "")
        assert message in " ".join(result.err.split())
        assert not (here / "runs").exists()

    def test_annotated_folders_without_a_task_are_asked_about(self, command: Command, scenes: Path, here: Path) -> None:
        assert "holds COCO annotations: say what is to be learned" in command("train", "--data", scenes).err
        shutil.copytree(scenes / "images", here / "pairs" / "images")
        shutil.copytree(scenes / "labels", here / "pairs" / "labels")
        assert "images beside label maps: say what" in command("train", "--data", "pairs").err

    def test_bad_data_is_refused_with_the_way_on_and_skipped_when_asked(
        self, command: Command, scenes: Path, here: Path
    ) -> None:
        shutil.copytree(scenes, here / "data")
        file = here / "data" / "annotations" / "instances_train.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [500, 500, 9, 9]
        file.write_text(json.dumps(content))
        (here / "data" / "images" / "train" / "00003.png").write_bytes(b"")
        result = command("train", "--task", "detection", "--data", "data", *SMALL, *BOXES)
        assert (result.code, result.out) == (2, "")
        assert "2 problems:" in result.err
        assert f"instances_train.json: annotations.bbox of id {content['annotations'][0]['id']}" in result.err
        assert "00003.png: images.file_name of id 3: the file is empty" in result.err
        assert "convattn check-data lists them all" in result.err
        assert command("check-data", "data").code == 1
        words = [*SMALL, *BOXES, "model=acmix_resnet14", "data.image_size=64"]
        skipping = command("train", "--task", "detection", "--data", "data", "--skip-bad", *words)
        assert skipping.code == 0, skipping.err
        assert "skipped 2 bad files or entries (listed in skipped.csv), the first" in skipping.out
        assert "7 training and 4 validation images" in skipping.out

    def test_help_fits_a_narrow_screen(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        for verb in ("train", "predict", "val"):
            monkeypatch.setenv("COLUMNS", "80")
            lines = command(verb, "--help").out.splitlines()
            head = lines[: next(place for place, line in enumerate(lines) if line.startswith("╭"))]
            examples = [line for line in head if line.startswith("   convattn ")]
            assert len(examples) >= 3
            for line, after in pairwise(head):
                assert not (line in examples and after.strip()), f"wrapped: {line}"
