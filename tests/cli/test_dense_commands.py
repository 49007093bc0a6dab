"""``convattn train``, ``predict`` and ``val`` of a detector and a segmenter, called as a person calls them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from convattn.cli._results_folder import RECORD
from convattn.data.coco import open_coco
from convattn.data.scenes import SceneSettings, write_scenes
from convattn.tasks.checkpoints import write_weights
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.training import prepare, train
from tests.cli.conftest import Command

SMALL = ["model_args.channels=[8, 8, 16, 16]", "epochs=1", "batch_size=4", "data.workers=0", "trainer.accelerator=cpu"]
BOXES = [
    "network.args={min_size: null, max_size: 128, anchor_scale: 4, channels: 16, fc_channels: 16, proposals: [40, 20],"
    " regions_per_image: 16, score_threshold: 0.0}"
]
PIXELS = ["network.args={pyramid_channels: 16, channels: 16}", "segmentation_augment.crop=[64, 64]", "ema.decay=null"]
TASKS = ("detection", "instances", "segmentation")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, SceneSettings(train=8, val=4))
    return root


@pytest.fixture(scope="module")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task that was really trained."""
    torch.set_num_threads(1)
    found = {}
    for task in TASKS:
        words = [*SMALL, *(PIXELS if task == "segmentation" else BOXES), f"data.folder={scenes}"]
        out = tmp_path_factory.mktemp(task)
        train(prepare(load_recipe(f"scenes-{task}", parse_overrides(words)), out))
        found[task] = (out / "latest").resolve()
    return found


@pytest.fixture
def images(scenes: Path, here: Path) -> Path:
    """Two images of the same name in different folders, one of another size, and one that cannot be read."""
    for folder, number in (("a", 1), ("b", 2)):
        (here / "new" / folder).mkdir(parents=True)
        shutil.copy(scenes / "images" / "val" / f"0000{number}.png", here / "new" / folder / "photo.png")
    Image.new("RGB", (61, 37), "green").save(here / "new" / "odd one.jpg")
    (here / "new" / "broken.png").write_text("<html>")
    return here / "new"


PICTURES = {"new_a_photo.png", "new_b_photo.png", "odd one.png"}


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


class TestPredict:
    @pytest.mark.parametrize("task", ["detection", "instances"])
    def test_a_detector_draws_and_writes_coco(
        self, task: str, command: Command, runs: dict[str, Path], images: Path, here: Path
    ) -> None:
        result = command("predict", "new", "--run", runs[task], "--out", "found", "--min-score", "0.01")
        assert result.code == 0, result.err
        assert {path.name for path in (here / "found").iterdir()} == PICTURES | {"annotations.json", RECORD}
        assert "1 of 4 images could not be read and were left out:\n  new/broken.png: " in result.err
        assert [line.partition(":")[0] for line in result.out.splitlines()] == [
            "new/a/photo.png",
            "new/b/photo.png",
            "new/odd one.jpg",
        ]
        assert Image.open(here / "found" / "new_a_photo.png").size[0] >= 128
        content = json.loads((here / "found" / "annotations.json").read_text())
        assert len(content["images"]) == 3
        assert [one["name"] for one in content["categories"]] == [*"0123456789"]
        assert content["annotations"]
        for name in ("bbox", "score", "area") + (("segmentation",) if task == "instances" else ()):
            assert all(name in one for one in content["annotations"])
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCO(str(here / "found" / "annotations.json"))
        assert len(theirs.anns) == len(content["annotations"])
        if task == "instances":
            for one in content["annotations"]:
                assert theirs.annToMask(one).sum() == one["area"]
        classes, ours, skipped = open_coco(
            here / "found" / "annotations.json", wanted="masks" if task == "instances" else "boxes", skip_bad=True
        )
        assert (classes, len(ours)) == ([*"0123456789"], 3)
        assert ours.image(2).size == (61, 37)
        assert all("mask" in one.reason or "segmentation" in one.reason for one in skipped)

    def test_weaker_objects_are_left_out(
        self, command: Command, runs: dict[str, Path], images: Path, here: Path
    ) -> None:
        counts = []
        for least in ("0", "0.1", "1"):
            assert command("predict", images, "--run", runs["detection"], "--min-score", least).code == 0
            found = json.loads((here / "predictions" / "annotations.json").read_text())["annotations"]
            assert all(one["score"] >= float(least) for one in found)
            counts.append(len(found))
        assert counts[0] > counts[1] >= counts[2] == 0

    def test_the_weights_say_from_which_score_on(self, command: Command, runs: dict[str, Path], here: Path) -> None:
        image = "new.png"
        Image.new("RGB", (61, 37), "green").save(here / image)
        for name, least in {"weights": 0.0123, "none": None}.items():
            weights = load_file(runs["detection"] / "weights.safetensors")
            with safe_open(runs["detection"] / "weights.safetensors", "pt") as file:
                described = {**file.metadata(), "min_score": json.dumps(least)}
            write_weights(here / f"{name}.safetensors", weights, described)
            for given, said in {None: least or 0.3, 0.0456: 0.0456}.items():
                words = [] if given is None else ["--min-score", given]
                result = command("predict", image, "--run", f"{name}.safetensors", *words)
                origin = "given" if given else "the default" if least is None else "where hits and errors balanced best"
                assert f"objects of a score from {said:.2g} on ({origin}" in result.err
                content = json.loads((here / "predictions" / "annotations.json").read_text())
                assert all(one["score"] >= said for one in content["annotations"])
                assert content["annotations"] or said == 0.3

    def test_ids_are_those_of_the_annotations(self, command: Command, scenes: Path, here: Path) -> None:
        """The run's own annotations, others that are given, and images that neither has."""
        for split, shift in {"train": 0, "val": 500}.items():
            file = scenes / "annotations" / f"instances_{split}.json"
            content = json.loads(file.read_text())
            for one in content["images"]:
                one["id"] += shift
            for one in content["annotations"]:
                one |= {"image_id": one["image_id"] + shift, "category_id": 10 * one["category_id"]}
            for one in content["categories"]:
                one["id"] *= 10
            (here / "data" / "annotations").mkdir(parents=True, exist_ok=True)
            (here / "data" / "annotations" / file.name).write_text(json.dumps(content))
        shutil.copytree(scenes / "images", here / "data" / "images")
        shutil.copy(here / "data" / "images" / "val" / "00001.png", here / "other.png")
        train(prepare(load_recipe("scenes-detection", parse_overrides([*SMALL, *BOXES, "data.folder=data"])), here))
        truth = json.loads((here / "data" / "annotations" / "instances_val.json").read_text())
        ids = {Path(one["file_name"]).name: one["id"] for one in truth["images"]}

        def found(*arguments: object) -> dict[str, int]:
            result = command("predict", *arguments, "--min-score", "0")
            assert result.code == 0, result.err
            content = json.loads((here / "predictions" / "annotations.json").read_text())
            assert [one["id"] for one in content["categories"]] == [one["id"] for one in truth["categories"]]
            numbers = {Path(one["file_name"]).name: one["id"] for one in content["images"]}
            assert {one["image_id"] for one in content["annotations"]} <= {*numbers.values()}
            assert {one["category_id"] for one in content["annotations"]} <= {one["id"] for one in truth["categories"]}
            return numbers

        images = here / "data" / "images" / "val"
        assert found(images, "--run", "latest") == ids
        assert found("data/images/val", "other.png", "--run", "latest") == {**ids, "other.png": max(ids.values()) + 1}
        shutil.copy(here / "latest" / "weights.safetensors", here)
        assert found(images, "--run", "weights.safetensors") == {name: place for place, name in enumerate(ids, 1)}
        annotations = here / "data" / "annotations" / "instances_val.json"
        assert found(images, "--run", "weights.safetensors", "--annotations", annotations) == ids
        assert found(images, "--run", "weights.safetensors", "--annotations", here / "data") == ids

    def test_two_files_with_the_same_ids_are_told(
        self, command: Command, scenes: Path, runs: dict[str, Path], here: Path
    ) -> None:
        """The scenes of both splits count from 1."""
        result = command("predict", scenes / "images", "--run", runs["detection"])
        assert "the images are numbered from 1: " in result.err
        assert "two of the images have one id there, in two files; name one of these files" in result.err
        content = json.loads((here / "predictions" / "annotations.json").read_text())
        assert [one["id"] for one in content["images"]] == list(range(1, 13))
        result = command("predict", scenes / "images", "--run", runs["detection"], "--annotations", scenes)
        assert (result.code, result.out) == (2, "")
        assert "name one of these files" in result.err

    def test_a_segmenter_draws_and_writes_label_maps(
        self, command: Command, runs: dict[str, Path], images: Path, here: Path
    ) -> None:
        result = command("predict", "new", "--run", runs["segmentation"], "--out", "found")
        assert result.code == 0, result.err
        assert {path.name for path in (here / "found").iterdir()} == PICTURES | {"labels", RECORD}
        labels = here / "found" / "labels"
        assert {path.name for path in labels.iterdir()} == PICTURES | {"classes.txt"}
        assert np.array(Image.open(labels / "odd one.png")).shape == (37, 61)
        assert np.array(Image.open(labels / "odd one.png")).max() < 11
        assert (labels / "classes.txt").read_text().split() == ["ground", *"0123456789"]
        assert "could not be read" in result.err
        assert "3 pictures in found, found/labels (label PNGs)" in result.err
        picture = Image.open(here / "found" / "odd one.png")
        assert picture.height > 37 * 4, "the colours are named below"

    @pytest.mark.parametrize("task", TASKS)
    def test_of_an_earlier_call_nothing_remains(
        self, task: str, command: Command, runs: dict[str, Path], images: Path, here: Path
    ) -> None:
        for earlier in TASKS:
            assert command("predict", images, "--run", runs[earlier], "--out", "found").code == 0
        (here / "found" / "notes.txt").write_text("mine")
        result = command("predict", images / "odd one.jpg", "--run", runs[task], "--out", "found")
        assert result.code == 0, result.err
        assert "1 picture in found" in result.err
        beside = {"labels"} if task == "segmentation" else {"annotations.json"}
        assert {path.name for path in (here / "found").iterdir()} == {"odd one.png", "notes.txt", RECORD} | beside
        if task == "segmentation":
            assert {path.name for path in (here / "found/labels").iterdir()} == {"odd one.png", "classes.txt"}

    @pytest.mark.parametrize("task", TASKS)
    def test_weights_alone_give_what_their_run_gives(
        self, task: str, command: Command, runs: dict[str, Path], images: Path, here: Path
    ) -> None:
        shutil.copy(runs[task] / "weights.safetensors", here / "mine.safetensors")
        for out, source in (("one", runs[task]), ("two", here / "mine.safetensors")):
            assert command("predict", images, "--run", source, "--out", out, "--min-score", 0).code == 0
        place = "annotations.json" if task != "segmentation" else "labels/odd one.png"
        assert (here / "one" / place).read_bytes() == (here / "two" / place).read_bytes()

    def test_a_persons_own_files_are_never_written_over(
        self, command: Command, runs: dict[str, Path], scenes: Path, here: Path
    ) -> None:
        shutil.copytree(scenes, here / "data")
        before = {path: path.read_bytes() for path in (here / "data").rglob("*") if path.is_file()}
        for task in TASKS:
            for out in ("data", "data/images/val"):
                result = command("predict", "data/images/val", "--run", runs[task], "--out", out)
                assert (result.code, result.out) == (2, "")
                assert "holds other files" in result.err
        assert {path: path.read_bytes() for path in (here / "data").rglob("*") if path.is_file()} == before
        image = here / "data" / "images" / "val" / "00001.png"
        for task in (*TASKS, *TASKS):  # earlier results may be
            assert command("predict", image, "--run", runs[task]).code == 0

    def test_nothing_readable_is_exit_code_2(self, command: Command, runs: dict[str, Path], images: Path) -> None:
        for task in TASKS:
            result = command("predict", images / "broken.png", "gone.png", "--run", runs[task])
            assert (result.code, result.out) == (2, "")
            assert "2 of 2 images could not be read" in result.err


def close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-6), name


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

    @pytest.mark.parametrize("task", TASKS)
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

    @pytest.mark.parametrize("task", TASKS)
    def test_the_last_weights_find_the_runs_images(self, task: str, command: Command, runs: dict[str, Path]) -> None:
        result = command("val", "--run", runs[task] / "last.safetensors", "--json")
        assert json.loads(result.out)["images"] == 4, result.err


@pytest.mark.parametrize("task", TASKS)
def test_an_exported_file_gives_what_the_run_gives(
    command: Command, runs: dict[str, Path], scenes: Path, here: Path, task: str
) -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
    made = command("export", runs[task], "--out", here / "model.onnx", "--data", scenes / "images" / "val")
    assert made.code == 0, made.err
    for source, out in ((runs[task], "run"), (here / "model.onnx", "file")):
        options = [] if task == "segmentation" else ["--min-score", 0.2]
        assert command("predict", scenes / "images" / "val", "--run", source, "--out", out, *options).code == 0
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
