"""Names that are not UTF-8, through every command and every file that it leaves."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.coco import open_coco
from convattn.tasks.inference import load_model
from convattn.tasks.run_folder import open_run
from convattn.tasks.training import prepare_resume
from tests.cli.conftest import Command, paint
from tests.cli.dense import BOXES

LATIN = os.fsdecode(b"caf\xe9")
"""A name of a file system of another time."""

SHOWN = "caf\\udce9"

SMALL = [
    *("--epochs=1", "--batch-size=4", "--model=test_resnet", "data.workers=0", "data.image_size=32", "model_args={}"),
    *("trainer.accelerator=cpu", "schedule.warmup=0"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in whose own name is not UTF-8 either."""
    torch.set_num_threads(1)
    folder = tmp_path / LATIN
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such names")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pictures(here: Path) -> Path:
    """Class folders and files with such names."""
    for seed, name in enumerate((LATIN, "dog")):
        for number in range(6):
            paint(here / "photos" / name / f"{LATIN}{number}.png", (250 * seed, 90, 0), 10 * seed + number)
    (here / "photos" / "dog" / f"{LATIN}-broken.png").touch()
    return here / "photos"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_class_folders_are_checked_trained_on_shown_and_resumed(command: Command, pictures: Path, here: Path) -> None:
    found = command("check-data", "photos", "--json")
    assert found.code == 1
    assert json.loads(found.out)[0]["problems"][0]["file"].endswith(f"dog/{LATIN}-broken.png")
    assert f"dog/{SHOWN}-broken.png" in command("check-data", "photos").out

    found = command("train", "--data", "photos", *SMALL)
    assert found.code == 0, found.err
    assert "photos: 2 classes, 10 training and 2 validation images\n" in found.out
    run = open_run(here / "runs" / "latest")
    assert [row["name"].split("/")[0] for row in table(run.predictions)] == [SHOWN, "dog"]
    assert [row["file"] for row in table(run.skipped)] == [f"dog/{SHOWN}-broken.png"]
    assert run.classes.read_text() == f'"{SHOWN}"\ndog\n'
    assert "\ufffd" in run.report.read_text(encoding="utf-8")
    weights_of = run.weights.read_bytes()
    run.summary.unlink()
    found = command("train", "--resume", "runs/latest")
    assert found.code == 0, found.err
    assert "resumed" in found.out
    assert run.weights.read_bytes() == weights_of
    assert load_model(run.path).classes == [LATIN, "dog"]

    assert f"  dog/{SHOWN}-broken.png: the file is empty" in command("val").err
    assert json.loads(command("val", "--json").out)["per_class"][0]["name"] == LATIN


@pytest.mark.parametrize("to_file", [True, False], ids=["file", "stdout"])
def test_the_answers_of_a_classifier(
    to_file: bool, command: Command, trained: Path, pictures: Path, here: Path
) -> None:
    def answers(form: str) -> str:
        out = ["--out", LATIN + form] if to_file else []
        found = command("predict", "photos", "--run", trained, "--format", form, "--top-k", 1, *out)
        assert found.code == 0, found.err
        assert f"  photos/dog/{SHOWN}-broken.png: the file is empty" in found.err
        return (here / (LATIN + form)).read_text(encoding="utf-8") if to_file else found.out

    files = [f"photos/{folder}/{{}}{number}.png" for folder in ("{0}", "dog") for number in range(6)]
    exact = sorted(file.replace("{0}", "{}").replace("{}", LATIN) for file in files)
    assert sorted(one["file"] for one in json.loads(answers("json"))) == exact
    shown = [file.replace(LATIN, SHOWN) for file in exact]
    assert sorted(row["file"] for row in csv.DictReader(answers("csv").splitlines())) == sorted(shown)
    assert all(file in answers("table") for file in shown)


def test_a_file_name_with_a_line_end_is_one_cell(command: Command, trained: Path, here: Path) -> None:
    paint(here / "a\rb.png", (250, 0, 0), 0)
    found = command("predict", "a\rb.png", "--run", trained, "--format", "csv", "--top-k", 1, "--out", "a.csv")
    assert found.code == 0
    with (here / "a.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a\rb.png"]


def test_a_terminal_of_ascii_gets_what_it_can_show(trained: Path, pictures: Path) -> None:
    words = ["predict", f"photos/dog/{LATIN}1.png", "--run", str(trained), "--top-k", "1", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", "from convattn.cli import main; main()", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["file"] == f"photos/dog/{LATIN}1.png"


def write_pairs(root: Path) -> None:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(4):
        stripes = (np.add.outer(np.arange(40), np.arange(40)) // 8 + number) % 2
        Image.fromarray(stripes.astype(np.uint8)).save(root / "labels" / f"{LATIN}{number}.png")
        Image.fromarray((stripes * 200).astype(np.uint8)).save(root / "images" / f"{LATIN}{number}.png")


def test_label_pngs(command: Command, here: Path) -> None:
    write_pairs(here / LATIN)
    (here / LATIN / "classes.txt").write_text(f'ground\n"{SHOWN}"\n')
    words = ["segmentation_augment.crop=[32,32]", "network.args={pyramid_channels: 16, channels: 16}"]
    assert command("check-data", LATIN).code == 0
    found = command("train", "--task", "segmentation", "--data", LATIN, *SMALL, *words)
    assert found.code == 0, found.err
    run = open_run(here / "runs" / "latest")
    (name,) = [row["name"] for row in table(run.predictions)]
    assert name.startswith(f"images/{SHOWN}")
    assert [row["class"] for row in table(run.per_class)] == ["ground", SHOWN]
    assert prepare_resume(run).data.classes == ["ground", LATIN]
    assert command("val").code == 0
    found = command("predict", f"{LATIN}/images", "--out", "found")
    assert found.code == 0, found.err
    assert (here / "found" / "labels" / f"{LATIN}0.png").is_file()
    assert (here / "found" / "labels" / "classes.txt").read_text() == f'ground\n"{SHOWN}"\n'


def test_coco_annotations(command: Command, here: Path) -> None:
    images, objects = [], []
    for number in range(1, 5):
        name = f"{LATIN}{number}.png"
        paint(here / "coco" / "images" / name, (60 * number, 0, 0), number)
        images.append({"id": number, "file_name": name, "width": 24, "height": 24})
        objects.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
        )
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a\u2028b"}]}
    (here / "coco" / "annotations.json").write_text(json.dumps(content))
    assert command("check-data", "coco").code == 0
    found = command("train", "--task", "detection", "--data", "coco", "--out", f"runs/{LATIN}", *SMALL, *BOXES)
    assert found.code == 0, found.err
    run = open_run(here / "runs" / LATIN / "latest")
    assert run.classes.read_text() == '"a\\u2028b"\n'
    assert prepare_resume(run).data.classes == ["a\u2028b"]
    assert any((run.path / "tensorboard").iterdir())
    assert command("val", "--run", f"runs/{LATIN}/latest").code == 0
    found = command("predict", "coco/images", "--run", run.path, "--out", LATIN, "--min-score", 0)
    assert found.code == 0, found.err
    classes, opened, skipped = open_coco(here / LATIN / "annotations.json", images=here / LATIN, wanted="boxes")
    assert (classes, skipped) == (["a\u2028b"], [])
    assert [Path(opened.name(index)).name for index in range(4)] == [f"{LATIN}{number}.png" for number in range(1, 5)]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", " "])
def test_class_folders_with_line_ends_are_resumed(name: str, command: Command, here: Path) -> None:
    for seed, folder in enumerate((name, "dog")):
        for number in range(4):
            paint(here / "photos" / folder / f"{number}.png", (250 * seed, 90, 0), 10 * seed + number)
    found = command("train", "--data", "photos", *SMALL)
    assert found.code == 0, found.err
    run = open_run(here / "runs" / "latest")
    run.summary.unlink()
    found = command("train", "--resume", "runs/latest")
    assert found.code == 0, found.err
    assert load_model(run.path).classes == prepare_resume(run).data.classes == sorted([name, "dog"])
