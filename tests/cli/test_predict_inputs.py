"""``convattn predict`` on all that a person can give it, in all formats, by networks of every task."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.images import ImageError
from convattn.data.masks import decode_mask
from convattn.data.video import Video, VideoWriter
from convattn.tasks.checkpoints import describe, write_weights
from convattn.tasks.config import TaskName
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.task import task_of
from convattn.tasks.training import prepare
from tests.cli.conftest import Command
from tests.data import same_data
from tests.tasks.test_formats import SETTINGS

WRITE = {
    "classification": same_data.class_folders,
    "detection": same_data.coco,
    "instances": same_data.coco,
    "segmentation": same_data.pairs,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[TaskName, Path]:
    """The weights of a network of each task, as they are before training, and its data beside them."""
    torch.set_num_threads(1)
    found: dict[TaskName, Path] = {}
    for task, (name, settings) in SETTINGS.items():
        root = tmp_path_factory.mktemp(task)
        data = WRITE[task](root / "data")
        words = [*settings, "network.args.score_threshold=0.0"] if task in ("detection", "instances") else settings
        job = prepare(load_recipe(name, {**parse_overrides(words), "data.folder": str(data)}), root)
        more = task_of(job.recipe).describe(job.data)
        found[task] = root / "weights.safetensors"
        write_weights(found[task], job.model.state_dict(), describe(job.recipe, job.data.classes, more))
    return found


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images in two folders."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("1", "2", "deep/3")):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        same_data.image("val", number).save(tmp_path / "new" / f"{name}.png")
    (tmp_path / "new" / "notes.txt").touch()
    return tmp_path / "new"


@pytest.fixture
def clip(images: Path) -> Path:
    """A video of five frames of odd sides."""
    pytest.importorskip("av")
    with VideoWriter(images / "clip.mp4", Fraction(10)) as writer:
        for number in range(5):
            writer.add(same_data.image("train", number))
    return images / "clip.mp4"


def files(out: str) -> list[str]:
    return [row["file"] for row in csv.DictReader(io.StringIO(out)) if row["rank"] == "1"]


def test_patterns_and_stdin(
    command: Command, models: dict[TaskName, Path], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--run", models["classification"], "--format", "csv"]
    assert files(command("predict", "new/*.png", *words).out) == ["new/1.png", "new/2.png"]
    assert files(command("predict", "new/**/*", *words).out) == ["new/1.png", "new/2.png", "new/deep/3.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("new/2.png\n\nnew/1.png\n"))
    assert files(command("predict", "-", "new/deep", *words).out) == ["new/2.png", "new/1.png", "new/deep/3.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no line came from stdin" in command("predict", "-", *words).err
    assert "new/*.jpg: no image has such a name; put a pattern in quotes" in command("predict", "new/*.jpg", *words).err
    os.rename("new/1.png", "new/[1].png")
    assert files(command("predict", "new/[1].png", *words).out) == ["new/[1].png"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(images: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(images)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses(command: Command, models: dict[TaskName, Path], site: str) -> None:
    words = ["--run", models["classification"], "--format", "csv"]
    result = command("predict", f"{site}/1.png", f"{site}/notes.txt", *words)
    assert (result.code, files(result.out)) == (0, [f"{site}/1.png"])
    assert f"{site}/notes.txt: the file is empty" in result.err
    gone = command("predict", f"{site}/gone.png", *words)
    assert (gone.code, gone.out) == (2, "")
    assert "gone.png: cannot be fetched: File not found; check the address, or give a file" in gone.err.replace(
        "\n", " "
    )


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("task", SETTINGS)
def test_every_task_answers_as_data(
    command: Command, models: dict[TaskName, Path], images: Path, task: TaskName, form: str
) -> None:
    words = ["predict", "new", "--run", models[task], "--format", form, "--conf", "0.0", "--batch", "1"]
    result = command(*words)
    assert result.code == 0
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(result.out)))
        found = {name: [row for row in rows if row["file"] == name] for name in files(result.out)}
    else:
        entries = json.loads(result.out) if form == "json" else [json.loads(line) for line in result.out.splitlines()]
        found = {entry["file"]: entry["predictions"] for entry in entries}
    assert list(found) == ["new/1.png", "new/2.png", "new/deep/3.png"]
    for rows in found.values():
        assert {row["class"] for row in rows} <= set(same_data.CLASSES)
        measure = {"classification": "probability", "segmentation": "part"}.get(task, "score")
        sizes = [float(row[measure]) for row in rows]
        assert sizes == sorted(sizes, reverse=True)
        if measure != "score":
            assert sum(sizes) == pytest.approx(1, abs=1e-5)
    command(*words, "--out", "answers")
    assert Path("answers").read_text() == result.out


def test_coco_results_have_the_ids_of_the_annotations(
    command: Command, models: dict[TaskName, Path], images: Path
) -> None:
    from pycocotools.coco import COCO

    data = models["instances"].parent / "data"
    words = ["--run", models["instances"], "--format", "coco", "--conf", "0.0"]
    result = command("predict", data / "val", "--annotations", data, *words)
    assert result.code == 0, result.err
    truth = COCO(str(data / "annotations" / "instances_val.json"))
    answers = truth.loadRes(json.loads(result.out))
    assert {one["category_id"] for one in answers.dataset["annotations"]} <= {1, 2, 3}
    assert min(one["image_id"] for one in answers.dataset["annotations"]) == 13
    first = answers.dataset["annotations"][0]
    assert answers.annToMask(first).shape == (same_data.HEIGHT, same_data.WIDTH)
    stuff = json.loads(command("predict", "new/1.png", "--run", models["segmentation"], "--format", "coco").out)
    sums = sum(decode_mask(one["segmentation"], same_data.HEIGHT, same_data.WIDTH).sum() for one in stuff)
    assert sums == same_data.HEIGHT * same_data.WIDTH


def test_yolo_labels_are_the_boxes(command: Command, models: dict[TaskName, Path], images: Path) -> None:
    words = ["predict", "new", "--run", models["detection"], "--conf", "0.0"]
    assert command(*words, "--format", "yolo", "--out", "found").code == 0
    assert Path("found/classes.txt").read_text().split() == list(same_data.CLASSES)
    boxes = json.loads(command(*words, "--format", "json").out)
    for entry, name in zip(boxes, ("1", "2", "3"), strict=True):
        rows = np.array([line.split() for line in Path(f"found/{name}.txt").read_text().splitlines()], float)
        corners = [[row[side] for side in ("x1", "y1", "x2", "y2")] for row in entry["predictions"]]
        middle, sides = rows[:, 1:3], rows[:, 3:5]
        whole = np.concatenate([middle - sides / 2, middle + sides / 2], 1) * np.tile(
            [same_data.WIDTH, same_data.HEIGHT], 2
        )
        np.testing.assert_allclose(whole, corners, atol=2e-3)
        assert [same_data.CLASSES[int(row[0])] for row in rows] == [row["class"] for row in entry["predictions"]]
    assert command(*words, "--format", "yolo", "--out", "found").code == 0  # earlier results are cleared
    for task, form in (("classification", "coco"), ("classification", "yolo"), ("segmentation", "yolo")):
        result = command("predict", "new", "--run", models[task], "--format", form)
        assert (result.code, f"--format {form} is not for {task}: take json, csv" in result.err) == (2, True)


def test_a_video_is_answered_frame_by_frame(command: Command, models: dict[TaskName, Path], clip: Path) -> None:
    words = ["predict", "new/clip.mp4", "--format", "csv"]
    times = [f"new/clip.mp4 at 0.{frame}0 s" for frame in range(5)]
    assert files(command(*words, "--run", models["classification"]).out) == times
    for task in ("detection", "segmentation"):
        result = command("predict", "new", "--run", models[task], "--out", "found", "--conf", "0.0")
        assert result.code == 0, result.err
        written = {path.name for path in Path("found").glob("*.*") if not path.name.startswith(".")}
        assert written - {"annotations.json"} == {"1.png", "2.png", "3.png", "clip.mp4"}
        drawn = Video(Path("found/clip.mp4"))
        assert (len(drawn), drawn.rate) == (5, 10)
        assert min(drawn.image(4).size) >= 40
    content = json.loads(Path("found/.convattn-predict.json").read_text())
    assert "labels/clip-000004.png" in content["files"]


class TestVideo:
    def test_frames_come_in_any_order(self, clip: Path) -> None:
        video = Video(clip)
        assert (len(video), video.image(0).size) == (5, (same_data.WIDTH - 1, same_data.HEIGHT - 1))
        last = video.image(4)
        assert video.image(1).tobytes() != last.tobytes()
        assert video.image(4).tobytes() == last.tobytes()
        with pytest.raises(ImageError, match="ends before frame 9"):
            video.image(9)

    @pytest.mark.parametrize("content", [b"", b"<html>"])
    def test_what_is_no_video(self, command: Command, images: Path, content: bytes) -> None:
        pytest.importorskip("av")
        (images / "bad.mp4").write_bytes(content)
        result = command("predict", images / "bad.mp4", "--run", "gone")
        assert result.code == 2
        assert "bad.mp4: no video that can be read: " in result.err

    def test_frames_of_one_size_are_written(self, tmp_path: Path) -> None:
        pytest.importorskip("av")
        with VideoWriter(tmp_path / "a.mp4", Fraction(5)) as writer:
            for size in ((64, 48), (32, 32)):
                writer.add(Image.new("RGB", size, "red"))
        assert [Video(tmp_path / "a.mp4").image(index).size for index in range(2)] == [(64, 48)] * 2
