"""Loggers of other services, in their local modes."""

from pathlib import Path

import pytest

from convattn.errors import UserError
from convattn.tasks import building
from convattn.tasks.recipes import load_recipe
from convattn.tasks.training import prepare, train
from tests.data import same_data

SETTINGS = {"model": "test_resnet", "model_args": {}, "data.image_size": 16, "data.workers": 0, "epochs": 2}
SETTINGS |= {"trainer.accelerator": "cpu", "batch_size": 4}


def test_curves_go_to_wandb_and_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = same_data.class_folders(tmp_path / "data")
    settings = {**SETTINGS, "data.folder": str(data), "trainer.loggers": ["wandb", "mlflow"]}
    train(prepare(load_recipe("folder-small", settings), tmp_path / "runs"))
    run = (tmp_path / "runs" / "latest").resolve()
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    (curve,) = run.glob("mlruns/*/*/metrics/val_accuracy")
    assert len(curve.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(building, "find_spec", lambda _: None)
    recipe = load_recipe("folder-small", {**SETTINGS, "trainer.loggers": [name]})
    with pytest.raises(UserError, match=f"trainer.loggers: {name} is not installed: pip install"):
        prepare(recipe, tmp_path)
