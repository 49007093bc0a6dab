"""The command called as a person calls it, and a run that it can use."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from convattn.cli import app, main
from tests.cli.dense import BOXES, PIXELS, SMALL, TASKS


@dataclass(frozen=True)
class Outcome:
    """What a call of the command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def paint(path: Path, color: tuple[int, int, int], seed: int) -> None:
    """Save a noisy image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 90, (24, 24, 3))
    Image.fromarray(np.clip(np.array(color) * 0.8 + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call ``convattn ARGUMENTS``."""
    return caller(app, monkeypatch, capsys)


def caller(program: typer.Typer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call a program as its users do."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["convattn", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(program)
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        return Outcome(end.value.code or 0, streams.out, streams.err)

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colours, by class."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for name, color in COLORS.items():
        for index in range(20):
            paint(root / name / f"{index:02}.png", color, index)
    (root / "red" / "broken.png").touch()
    return root


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was really trained on the photos."""
    return train_on(photos, tmp_path_factory.mktemp("runs"))


def train_on(photos: Path, out: Path, **settings: Any) -> Path:
    """Train on the photos; the run's folder."""
    from convattn.tasks.recipes import load_recipe
    from convattn.tasks.training import prepare, train

    given = {"model": "test_resnet", "data.folder": str(photos), "data.image_size": 32, "data.workers": 0}
    given |= {"epochs": 6, "batch_size": 8, "optimizer.lr": 0.003, "schedule.warmup": 0, "model_args": {}}
    given |= {"trainer.accelerator": "cpu"}
    train(prepare(load_recipe("folder", given | settings), out))
    return out / "latest"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the command is called in."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with boxes, masks and label maps."""
    from convattn.data.scenes import SceneSettings, write_scenes

    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, SceneSettings(train=8, val=4))
    return root


@pytest.fixture(scope="session")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task that was really trained."""
    from convattn.tasks.recipes import load_recipe, parse_overrides
    from convattn.tasks.training import prepare, train

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
