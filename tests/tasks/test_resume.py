import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import TINY, Start

from convattn.tasks.checkpoints import read_checkpoint

WAIT = 120


def run_folder(root: Path) -> Path:
    return (root / "latest").resolve()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.002)


def changed(path: Path) -> Callable[[], bool]:
    def stamp() -> int:
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    before = stamp()
    return lambda: stamp() != before


def finish(start: Start, arguments: list[str]) -> None:
    process = start(arguments)
    process.join(WAIT)
    assert process.exitcode == 0


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


TABLES = ("metrics.csv", "paths.csv", "skipped.csv", "classes.txt")


def assert_same_run(ours: Path, theirs: Path, results: Sequence[str] = (), tables: str = "predictions.csv") -> None:
    for name in ("weights.safetensors", "last.safetensors", *results):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in (*TABLES, tables):
        assert table(ours / name) == table(theirs / name), name
    for name in ("last.ckpt", "best.ckpt"):
        stored = [read_checkpoint(run / "checkpoints" / name) for run in (ours, theirs)]
        for part in ("state_dict", "optimizer_states"):
            mine, other = (tensors(content[part]) for content in stored)
            assert len(mine) == len(other) > 0
            assert all(one.equal(another) for one, another in zip(mine, other, strict=True)), (name, part)
        place, their_place = ({**content["convattn_progress"], "seconds": 0} for content in stored)
        assert place == their_place, name
    summaries = [json.loads((run / "summary.json").read_text()) for run in (ours, theirs)]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}


def assert_stopped(process: BaseProcess, run: Path, told: Path) -> None:
    """Assert that a run that was stopped has told how to go on, and left a report but no weights."""
    process.join(WAIT)
    output = " ".join(told.read_text().split())
    assert process.exitcode == 130
    assert f"report so far stopped/{run.name}/report.html" in output
    assert f"Go on with: convattn train --resume stopped/{run.name}" in output
    assert "Traceback" not in output
    assert (run / "report.html").is_file()
    assert not (run / "weights.safetensors").exists()


def tensors(content: object) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    if isinstance(content, dict):
        content = list(content.values())
    return sum(map(tensors, content), []) if isinstance(content, list) else []  # noqa: RUF017


def kill_five_times(start: Start, root: Path, arguments: list[str], spread: float, seed: int) -> None:
    """SIGKILL at random moments: the first perhaps before any checkpoint, the others after some progress."""
    moments = random.Random(seed)
    train = ["train", "--out", str(root), *arguments]
    for attempt in range(5):
        process = start(train)
        if attempt == 0:
            wait_for(lambda: (root / "latest" / "config.yaml").is_file())
        else:
            wait_for(changed(run_folder(root) / "checkpoints" / "last.ckpt"))
        time.sleep(moments.uniform(0, spread))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        train = ["train", "--resume", str(root / "latest")]
    finish(start, train)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_five_times_ends_bit_equal(workers: int, start: Start, photos: Path, tmp_path: Path) -> None:
    arguments = [*TINY, f"--data={photos}", f"data.workers={workers}"]
    finish(start, ["train", "--out", str(tmp_path / "whole"), *TINY, f"--data={photos}"])
    kill_five_times(start, tmp_path / "killed", arguments, spread=0.15, seed=workers)
    assert_same_run(run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_acmix_killed_five_times_ends_bit_equal(
    workers: int, seed: int, start: Start, photos: Path, tmp_path: Path
) -> None:
    model = ["model=acmix_resnet14", "model_args={stem: small, channels: [8, 8, 16, 16], drop_path_rate: 0.2}"]
    arguments = [
        *TINY,
        f"--data={photos}",
        *model,
        f"data.workers={workers}",
        "memory_format=channels_last",
        f"seed={seed}",
    ]
    finish(start, ["train", "--out", str(tmp_path / "whole"), *arguments])
    kill_five_times(start, tmp_path / "killed", arguments, spread=2.0, seed=time.time_ns())
    assert_same_run(run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "send", "workers"),
    [(signal.SIGINT, os.kill, 0), (signal.SIGTERM, os.killpg, 2)],
    ids=["Ctrl-C", "SIGTERM to the workers too"],
)
def test_a_stopped_run_says_how_to_go_on_and_ends_bit_equal(
    number: int, send: Callable[[int, int], None], workers: int, start: Start, photos: Path, tmp_path: Path
) -> None:
    arguments = [*TINY, f"--data={photos}", "epochs=10", "checkpoint={every_seconds: 1000, every_steps: null}"]
    finish(start, ["train", "--out", str(tmp_path / "whole"), *arguments])
    arguments.append(f"data.workers={workers}")
    process = start(["train", "--out", str(tmp_path / "stopped"), *arguments])
    wait_for(lambda: (tmp_path / "stopped" / "latest" / "tensorboard").is_dir())
    time.sleep(0.3)
    send(process.pid, number)
    run = run_folder(tmp_path / "stopped")
    assert_stopped(process, run, tmp_path / "output.txt")
    finish(start, ["train", "--resume", str(run)])
    assert_same_run(run, run_folder(tmp_path / "whole"))


def test_a_signal_while_the_run_finishes_loses_nothing(start: Start, photos: Path, tmp_path: Path) -> None:
    arguments = [*TINY, f"--data={photos}", "epochs=1", "data.workers=2"]
    finish(start, ["train", "--out", str(tmp_path / "whole"), *arguments])
    process = start(["train", "--out", str(tmp_path / "runs"), *arguments])
    wait_for(lambda: (run_folder(tmp_path / "runs") / "predictions.csv").is_file())
    os.killpg(process.pid, signal.SIGTERM)
    process.join(WAIT)
    run = run_folder(tmp_path / "runs")
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 130
    assert f"Stopped.\nGo on with:\n  convattn train --resume runs/{run.name}\n" in output
    assert "Traceback" not in output
    assert not (run / "report.html").exists()
    finish(start, ["train", "--resume", str(run)])
    assert_same_run(run, run_folder(tmp_path / "whole"))
    assert (run / "report.html").is_file()


def test_a_finished_run_is_shown_again_and_left_alone(start: Start, photos: Path, tmp_path: Path) -> None:
    finish(start, ["train", "--out", str(tmp_path / "runs"), f"--data={photos}", *TINY, "epochs=1"])
    run = run_folder(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    finish(start, ["train", "--resume", str(run)])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert "is finished already" in (tmp_path / "output.txt").read_text()
