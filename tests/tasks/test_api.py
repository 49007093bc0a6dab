"""``convattn.tasks.train`` with networks, callbacks and loggers of one's own; accumulated steps; an early end."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TINY
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convattn.tasks import resume, train
from convattn.tasks.classification import ClassificationObjective
from convattn.tasks.finishing import read_result
from convattn.tasks.inference import evaluate, load_model
from convattn.tasks.interrupt import RunInterrupted
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.run_folder import open_run
from convattn.tasks.task import task_of

SETTINGS = parse_overrides([*TINY[1:], "epochs=2", "checkpoint={every_seconds: null}"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_network_callbacks_and_loggers_of_ones_own(photos: Path, tmp_path: Path) -> None:
    class Seen(Callback):
        """Keeps what it could monitor, in the checkpoints too."""

        def __init__(self) -> None:
            self.figures: list[float] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.figures = [*self.figures, float(trainer.callback_metrics["val_accuracy"])]

        def state_dict(self) -> dict[str, Any]:
            return {"figures": self.figures}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.figures = state["figures"]

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=4)

    logger, out = CSVLogger(tmp_path / "mine"), tmp_path / "runs"
    settings = {**SETTINGS, "trainer.loggers": ["csv"], "data.image_size": 32}
    with pytest.raises(RunInterrupted):
        train("digits", settings, model=network(), data=photos, out=out, callbacks=[Seen(), Stop()], loggers=[logger])
    seen, run = Seen(), open_run(out / "latest")
    result = resume(run.path, model=network(), callbacks=[seen])
    assert result == read_result(run)
    metrics = rows(run.metrics)
    assert seen.figures == pytest.approx([float(row["val_accuracy"]) for row in metrics])
    assert [row["train_loss"] for row in rows(Path(logger.log_dir) / "metrics.csv")] == [metrics[0]["train_loss"]]
    assert len(list((run.path / "csv").glob("version_*/metrics.csv"))) == 2
    assert not run.tensorboard.exists()
    data = task_of(load_recipe("digits")).open_data(load_recipe("digits", {"data.folder": str(photos)}))
    scores = evaluate(load_model(run.path, model=network()), data.val)
    assert scores.figures["top1"] == pytest.approx(result.accuracy if result else None)


def test_the_curves_of_tensorboard_go_on_after_a_resume(photos: Path, tmp_path: Path) -> None:
    train("digits", SETTINGS, data=photos, out=tmp_path)
    run = open_run(tmp_path / "latest")
    curves = EventAccumulator(str(run.tensorboard)).Reload()
    for name in ("train_loss", "val_accuracy", "lr"):
        expected = [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows(run.metrics)]
        assert [(point.step, point.value) for point in curves.Scalars(name)] == expected


class StopAt(Callback):
    """Presses Ctrl-C after a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.step == self.batch:
            os.kill(os.getpid(), signal.SIGINT)


def test_accumulated_batches_are_one_batch(photos: Path, tmp_path: Path) -> None:
    """Without anything that depends on a batch, two halves give the step of the whole, also after a resume."""
    same = {"mix": {"mixup": 0, "cutmix": 0}, "model_args": {}, "model": "test_vit", "model_args.img_size": 32}
    same |= {"optimizer": {"name": "momentum", "lr": 0.01}, "schedule": {"name": "constant", "warmup": 0}}
    same |= {"ema.decay": None, "data.image_size": 32, "augment.random_erasing": 0}
    whole, halves = {**SETTINGS, **same, "batch_size": 32}, {**SETTINGS, **same, "batch_size": 16, "accumulate": 2}
    train("digits", whole, data=photos, out=tmp_path / "whole")
    train("digits", halves, data=photos, out=tmp_path / "halves")
    ours, theirs = (open_run(tmp_path / name / "latest") for name in ("halves", "whole"))
    weights = load_file(theirs.last_weights)
    for name, value in load_file(ours.last_weights).items():
        assert torch.allclose(value, weights[name], atol=1e-5), name
    # a checkpoint holds no gradients, so the stop waits for the step
    with pytest.raises(RunInterrupted):
        train("digits", halves, data=photos, out=tmp_path / "stopped", callbacks=[StopAt(2)])
    run = open_run(tmp_path / "stopped" / "latest")
    resume(run.path)
    assert run.last_weights.read_bytes() == ours.last_weights.read_bytes()


def test_a_run_ends_where_its_score_rises_no_more(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: Iterator[float] = iter([0.5, 0.75, 0.5, 0.25, 1.0])
    monkeypatch.setattr(ClassificationObjective, "compute", lambda _: {"val_loss": 1.0, "val_accuracy": next(figures)})
    settings = {**SETTINGS, "epochs": 9, "patience": 2, "batch_size": 64, "schedule.warmup": 0}
    result = train("digits", settings, data=photos, out=tmp_path)
    assert result is not None
    assert (result.best_epoch, result.epochs) == (2, 4)
    run = open_run(tmp_path / "latest")
    assert len(rows(run.metrics)) == 4
    # a run that was killed after its end stays ended
    run.summary.unlink()
    again = resume(run.path)
    assert again is not None
    assert (again.best_epoch, again.epochs) == (2, 4)
    assert len(rows(run.metrics)) == 4


def test_callbacks_of_lightning_monitor_the_figures(photos: Path, tmp_path: Path) -> None:
    early = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    result = train("digits", {**SETTINGS, "epochs": 9}, data=photos, out=tmp_path, callbacks=[early])
    assert result is not None
    assert result.epochs == 2


@pytest.mark.slow
def test_a_compiled_network_learns_what_it_learns_otherwise(photos: Path, tmp_path: Path) -> None:
    """Its weights have the same names; they differ by rounding."""
    plain = {**SETTINGS, "ema.decay": None, "optimizer": {"name": "momentum", "lr": 0.01}}
    train("digits", plain, data=photos, out=tmp_path / "plain")
    train("digits", {**plain, "compile": True}, data=photos, out=tmp_path / "compiled")
    ours, theirs = (load_file(open_run(tmp_path / name / "latest").last_weights) for name in ("compiled", "plain"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3, msg=name)
