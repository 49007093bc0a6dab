"""What is said of the time that training takes, and when."""

from __future__ import annotations

import re
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import TINY
from lightning import Callback, Trainer
from rich.console import Console

from convattn.tasks import pace
from convattn.tasks.module import TrainingModule
from convattn.tasks.pace import Heartbeat
from convattn.tasks.progress import ProgressBar
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.training import Job, prepare, train

STEP = 0.03


class Slow(Callback):
    """Makes each step at least so many seconds long."""

    def on_train_batch_start(self, *_: object) -> None:
        time.sleep(STEP)


@pytest.fixture
def job(photos: Path, tmp_path: Path) -> Job:
    """Three epochs of eight steps, two validation batches after each."""
    torch.set_num_threads(1)
    words = [*TINY[1:], "epochs=3", "checkpoint={every_seconds: null}"]
    return prepare(load_recipe("digits", {"data.folder": str(photos), **parse_overrides(words)}), tmp_path)


def lines(job: Job, faster: str = "") -> list[str]:
    console = Console(record=True, file=open("/dev/null", "w"), width=200)  # noqa: SIM115
    train(job, [Slow(), ProgressBar(console, faster)])
    return console.export_text().splitlines()


def test_a_pipe_gets_a_line_after_each_silence(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST", STEP / 5)
    monkeypatch.setattr(pace, "LONGEST", STEP / 5)
    said = lines(job)
    steps = [line for line in said if re.match(r"epoch \d/3  step", line)]
    assert all(said[2:])
    assert steps[0] == "epoch 1/3  step 0/8"
    assert any(re.fullmatch(r"epoch 1/3  step 1/8  loss \d+\.\d{3}  \d+\.\d s to go", line) for line in steps)
    assert len({line.split("  ")[1] for line in steps if line.startswith("epoch 2")}) > 3
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_nothing_is_said_of_what_is_soon_over(job: Job) -> None:
    said = lines(job)
    assert [line.split("  ")[0] for line in said if line.startswith("epoch")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert not any("to go" in line for line in said)


def test_the_pace_is_said_once_with_what_would_be_faster(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SETTLED": 3 * STEP, "WORTH_SAYING": 0.0, "LONG": 0.0}.items():
        monkeypatch.setattr(pace, name, seconds)
    said = lines(job, "a GPU")
    told = [place for place, line in enumerate(said) if "an epoch" in line]
    assert len(told) == 1
    first_epoch = next(place for place, line in enumerate(said) if line.startswith("epoch 1/3"))
    assert told[0] < first_epoch
    match = re.fullmatch(r"about (\d\.\d) s an epoch, (\d\.\d) s to go; faster: a GPU", said[told[0]])
    assert match is not None
    epoch, left = float(match[1]), float(match[2])
    assert epoch + 0.05 >= 8 * STEP
    assert 2 * epoch < left + 0.1 < 3 * epoch + 0.2


def test_a_bar_says_validating_only_while_that_takes_place(job: Job) -> None:
    console = Console(file=open("/dev/null", "w"), width=200, force_terminal=True)  # noqa: SIM115
    bar, shown = ProgressBar(console), {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: TrainingModule, *_: object) -> None:
            shown[module.step] = bar.text

        def on_validation_batch_start(self, *_: object) -> None:
            shown["validation"] = bar.text

    train(job, [bar, Look()])
    assert shown.pop("validation") == "validating"
    assert len(shown) == 24
    assert all(re.fullmatch(r"loss \d\.\d{3}", text) for step, text in shown.items() if step)


def test_silences_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST", 0.1)
    said: list[float] = []
    began = time.monotonic()
    with Heartbeat(lambda _: said.append(time.monotonic() - began), lambda: "half"):
        time.sleep(1.0)  # due at 0.1, 0.3 and 0.7
    count = len(said)
    assert 1 <= count <= 3
    assert said[0] >= 0.1
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(said))
    time.sleep(0.9)
    assert len(said) == count
