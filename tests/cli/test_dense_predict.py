"""``convattn predict`` with a detector and a segmenter, called as a person calls it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from convattn.cli._results_folder import RECORD
from convattn.data.coco import open_coco
from convattn.tasks.checkpoints import write_weights
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.training import prepare, train
from tests.cli.conftest import Command
from tests.cli.dense import BOXES, PICTURES, SMALL, TASKS
from tests.quick import slow_but

pytestmark = pytest.mark.usefixtures("here")


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

    @pytest.mark.parametrize("task", slow_but(["segmentation"], TASKS))
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

    @pytest.mark.parametrize("task", slow_but(["instances"], TASKS))
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
