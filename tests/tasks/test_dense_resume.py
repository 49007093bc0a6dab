"""``kill -9`` at random moments of detection, instances and segmentation: the resumed run ends bit-equal."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from conftest import Start
from dense_runs import TASKS, TINY
from test_resume import WAIT, changed, finish, run_folder, table, tensors, wait_for

from convattn.data.scenes import SceneSettings, write_scenes
from convattn.tasks.checkpoints import read_checkpoint

RANDOM = {
    "detection": ["detection_augment={horizontal_flip: 0.5, short_sides: [48, 64, 80], photometric: distort}"],
    "instances": ["detection_augment={horizontal_flip: 0.5, short_sides: [48, 64, 80], photometric: distort}"],
    "segmentation": ["segmentation_augment={horizontal_flip: 0.5, photometric: distort, crop: [64, 64]}"],
}
TABLES = ("metrics.csv", "paths.csv", "per_class.csv", "skipped.csv", "classes.txt")
RESULTS = {
    "detection": ("detections.json", "curves.json"),
    "instances": ("detections.json", "curves.json"),
    "segmentation": ("predictions.csv", "confusion.csv", "predictions/000001.png"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the scenes as a folder, which processes of their own can read."""
    root = tmp_path_factory.mktemp("folder") / "scenes"
    write_scenes(root, SceneSettings(train=8, val=4))
    return root


def arguments(task: str, folder: Path, *more: str) -> list[str]:
    """Everything random turned on, in small steps, each with a checkpoint."""
    words = [*TINY[task], *RANDOM[task], "model_args.drop_path_rate=0.3", "ema.decay=0.9", "batch_size=2"]
    words += ["optimizer={name: muon, lr: 3.0e-3, weight_decay: 0.02, clip_grad: 5.0}"]
    words += ["epochs=3", "checkpoint={every_seconds: null, every_steps: 1}", f"data.folder={folder}"]
    return [f"--recipe=scenes-{task}", *words, *more]


def assert_same_run(task: str, ours: Path, theirs: Path) -> None:
    for name in ("weights.safetensors", "last.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in TABLES:
        assert table(ours / name) == table(theirs / name), name
    for name in RESULTS[task]:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in ("last.ckpt", "best.ckpt"):
        stored = [read_checkpoint(run / "checkpoints" / name) for run in (ours, theirs)]
        for part in ("state_dict", "optimizer_states"):
            mine, other = (tensors(content[part]) for content in stored)
            assert len(mine) == len(other) > 0
            assert all(one.equal(another) for one, another in zip(mine, other, strict=True)), (name, part)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (ours, theirs)]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}


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
    assert_same_run(task, run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"))


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
    assert_same_run(task, run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"))


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
    process.join(WAIT)
    run = run_folder(tmp_path / "stopped")
    output = " ".join((tmp_path / "output.txt").read_text().split())
    assert process.exitcode == 130
    assert f"report so far stopped/{run.name}/report.html" in output
    assert f"Go on with: convattn train --resume stopped/{run.name}" in output
    assert "Traceback" not in output
    assert (run / "report.html").is_file()
    assert not (run / "weights.safetensors").exists()
    finish(start, ["train", "--resume", str(run)])
    assert_same_run(task, run, run_folder(tmp_path / "whole"))
