"""The command called as a person calls it, and a run that it can use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from convattn.cli import app, main


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
    from convattn.tasks.recipes import load_recipe
    from convattn.tasks.training import prepare, train

    settings = {"model": "test_resnet", "data.folder": str(photos), "data.image_size": 32, "data.workers": 0}
    settings |= {"epochs": 6, "batch_size": 8, "optimizer.lr": 0.003, "schedule.warmup": 0, "model_args": {}}
    settings |= {"trainer.accelerator": "cpu"}
    out = tmp_path_factory.mktemp("runs")
    train(prepare(load_recipe("folder", settings), out))
    return out / "latest"
