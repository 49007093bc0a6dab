"""``kill -9`` at random moments of detection, instances and segmentation: the resumed run ends bit-equal."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from conftest import Start
from dense_runs import TASKS, TINY
from test_resume import assert_same_run, assert_stopped, changed, finish, run_folder, wait_for

RANDOM = {
    "detection": ["detection_augment={horizontal_flip: 0.5, short_sides: [48, 64, 80], photometric: distort}"],
    "instances": ["detection_augment={horizontal_flip: 0.5, short_sides: [48, 64, 80], photometric: distort}"],
    "segmentation": ["segmentation_augment={horizontal_flip: 0.5, photometric: distort, crop: [64, 64]}"],
}
RESULTS = {
    "detection": ("detections.json", "curves.json"),
    "instances": ("detections.json", "curves.json"),
    "segmentation": ("predictions.csv", "confusion.csv", "predictions/000001.png"),
}


def arguments(task: str, folder: Path, *more: str) -> list[str]:
    """Everything random turned on, in small steps, each with a checkpoint."""
    words = [*TINY[task], *RANDOM[task], "model_args.drop_path_rate=0.3", "ema.decay=0.9", "batch_size=2"]
    words += ["optimizer={name: muon, lr: 3.0e-3, weight_decay: 0.02, clip_grad: 5.0}"]
    words += ["epochs=3", "checkpoint={every_seconds: null, every_steps: 1}", f"data.folder={folder}"]
    return [f"--recipe=scenes-{task}", *words, *more]


def kill(start: Start, root: Path, words: list[str], times: int, moments: random.Random) -> int:
    """Kill a run that often after some progress, as long as it lasts; return how often it was, then finish it."""
    train, killed = ["train", "--out", str(root), *words], 0
    for attempt in range(times):
        process = start(train)
        if attempt == 0:
            wait_for(lambda: (root / "latest" / "checkpoints" / "last.ckpt").is_file())
        else:
            wait_for(changed(run_folder(root) / "checkpoints" / "last.ckpt"))
        time.sleep(moments.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        train = ["train", "--resume", str(root / "latest")]
        if (root / "latest" / "weights.safetensors").is_file():
            break
    finish(start, train)
    return killed


GATE = pytest.param("instances", 2)
SLOW = [pytest.param(task, 3, marks=pytest.mark.slow) for task in TASKS]


@pytest.mark.parametrize(("task", "times"), [GATE, *SLOW])
def test_a_killed_run_ends_bit_equal(task: str, times: int, start: Start, folder: Path, tmp_path: Path) -> None:
    words = arguments(task, folder, f"epochs={times}")
    finish(start, ["train", "--out", str(tmp_path / "whole"), *words])
    killed = kill(start, tmp_path / "killed", words, times, random.Random(task))
    assert killed
    assert_same_run(run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"), RESULTS[task], "per_class.csv")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_a_run_killed_at_other_moments_ends_bit_equal(
    task: str, workers: int, start: Start, folder: Path, tmp_path: Path
) -> None:
    more = [f"data.workers={workers}", "epochs=5", "memory_format=channels_last"]
    finish(start, ["train", "--out", str(tmp_path / "whole"), *arguments(task, folder, *more)])
    killed = kill(start, tmp_path / "killed", arguments(task, folder, *more), 6, random.Random())
    assert killed
    assert_same_run(run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"), RESULTS[task], "per_class.csv")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_ctrl_c_leaves_a_report_and_the_run_ends_bit_equal(
    task: str, start: Start, folder: Path, tmp_path: Path
) -> None:
    words = arguments(task, folder, "epochs=4")
    finish(start, ["train", "--out", str(tmp_path / "whole"), *words])
    process = start(["train", "--out", str(tmp_path / "stopped"), *words])
    wait_for(lambda: (tmp_path / "stopped" / "latest" / "checkpoints" / "best.ckpt").is_file())
    os.kill(process.pid, signal.SIGINT)
    run = run_folder(tmp_path / "stopped")
    assert_stopped(process, run, tmp_path / "output.txt")
    finish(start, ["train", "--resume", str(run)])
    assert_same_run(run, run_folder(tmp_path / "whole"), RESULTS[task], "per_class.csv")
