"""Which epoch is the best, and what a run leaves of it and of the last."""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from convattn.report.run import rank, read_run
from convattn.tasks import checkpoints
from convattn.tasks.checkpoints import PROGRESS, Progress, read_checkpoint, shipped_weights
from convattn.tasks.classification import ClassificationObjective
from convattn.tasks.finishing import read_result
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.run_folder import open_run
from convattn.tasks.training import prepare, train

QUICK = [*TINY[1:], "epochs=4", "batch_size=64", "checkpoint={every_seconds: null}", "schedule.warmup=0"]
NAN = math.nan

CASES = {
    "the highest accuracy": ([], [0.5, 0.75, 0.5, 0.25], [1.0, 0.5, 0.1, 0.1], 2),
    "of equals the least loss": ([], [0.9, 0.9, 0.9, 0.5], [1.03, 0.2, 0.4, 0.1], 2),
    "of equals in both the latest": ([], [0.5, 0.5, 0.5, 0.25], [1.0, 1.0, 1.0, 0.1], 3),
    "none of the warm-up": (["schedule.warmup=0.5"], [1.0, 0.5, 0.75, 0.5], [0.1, 1.0, 1.0, 1.0], 3),
    "none of a warm-up in steps": (["schedule.warmup_steps=3"], [1.0, 0.5, 0.5, 0.5], [0.1, 1.0, 0.5, 1.0], 3),
    "the last of a warm-up of the whole run": (["schedule.warmup_steps=99"], [1.0, 0.5, 0.75, 0.5], [0.1] * 4, 4),
    "a loss that is no number is the worst": ([], [0.5, 0.5, 0.5, 0.25], [1.0, NAN, NAN, 1.0], 1),
    "the last where nothing is measured": ([], [NAN] * 4, [NAN] * 4, 4),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES)
def test_the_best_epoch(case: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real epochs, whose figures are prescribed."""
    words, accuracies, losses, best = CASES[case]
    figures: Iterator[tuple[float, float]] = iter(zip(losses, accuracies, strict=True))
    names = ("val_loss", "val_accuracy")
    monkeypatch.setattr(ClassificationObjective, "compute", lambda _: dict(zip(names, next(figures), strict=True)))
    recipe = load_recipe("digits", {"data.folder": str(photos), **parse_overrides([*QUICK, *words])})
    result = train(prepare(recipe, tmp_path))
    assert result is not None
    assert result.best_epoch == best
    run = open_run(tmp_path / "latest")
    kept, last = read_checkpoint(run.best), read_checkpoint(run.last)
    assert (kept[PROGRESS]["epoch"], last[PROGRESS]["epoch"]) == (best, 4)
    for file, stored in ((run.weights, kept), (run.last_weights, last)):
        weights, shipped = load_file(file), shipped_weights(stored)
        assert weights.keys() == shipped.keys()
        assert all(torch.equal(weights[name], shipped[name]) for name in weights)
    # the page of a run that was stopped there marks the same epoch
    run.summary.unlink()
    marked = read_run(run.path).best("val_accuracy")
    assert (marked.epoch if marked else 4) == best


def test_nothing_measured_is_what_a_run_begins_with() -> None:
    assert rank({"val_loss": NAN}, "val_accuracy") == (Progress().best_score, -Progress().best_loss)
    assert rank({"box_AP": 0.0}, "box_AP") > rank({"box_AP": NAN}, "box_AP")
    assert rank({"box_AP": 0.5}, "box_AP") == (0.5, 0.0)


def test_the_interval_of_an_accuracy_of_few_images(photos: Path, tmp_path: Path) -> None:
    job = prepare(
        load_recipe("digits", {"data.folder": str(photos), **parse_overrides([*QUICK, "epochs=1"])}), tmp_path
    )
    result = train(job)
    assert result is not None
    with open_run(tmp_path / "latest").predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    count, right = len(rows), sum(row["label"] == row["predicted"] for row in rows)
    z, part = 1.959964, right / count
    middle, half = part + z**2 / (2 * count), z * math.sqrt(part * (1 - part) / count + z**2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    assert result.figures["accuracy_low"] == pytest.approx(low, abs=1e-6)
    assert result.figures["accuracy_high"] == pytest.approx(high, abs=1e-6)
    assert result.validated == count == 32
    assert read_result(open_run(tmp_path / "latest")) == result
    page = html.unescape(open_run(tmp_path / "latest").report.read_text()).replace("\u202f", " ")
    assert f"95 % interval {100 * low:.1f} % to {100 * high:.1f} %" in page
    assert "Dotted: epoch 1, the best: the highest accuracy after the warm-up, of equals that of the least loss" in page
    assert "But 32 validation images say little: one of them is 3.1 points" in page
    assert "<td>1, best</td>" in page


def test_a_place_of_version_0_1_is_taken() -> None:
    """It knows no loss of the best epoch."""
    stored = {name: value for name, value in asdict(Progress(epoch=2, best_score=0.5)).items() if name != "best_loss"}
    assert checkpoints._progress_fault({**stored, "loss_sum": torch.zeros(())}) == ""
    assert Progress(**stored).best_loss == Progress().best_loss
