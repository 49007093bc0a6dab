"""Whatever is wrong with what a person gives: one message of one line, exit code 2, no traceback, soon."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks.command
import convattn.cli
import reproduce.command
from tests.cli.bad_folders import coco, data_sets, run_folders
from tests.cli.bad_input import Case, Stock
from tests.cli.bad_settings import recipes, settings
from tests.cli.bad_weights import checkpoints, damaged_checkpoints, headers, weights_files
from tests.cli.conftest import COLORS, caller, paint
from tests.tasks.dense_runs import write_coco, write_pairs

CASES = [*recipes(), *settings(), *headers(), *weights_files(), *checkpoints(), *damaged_checkpoints()]
CASES += [*run_folders(), *coco(), *data_sets()]
PROGRAMS = {"benchmarks": benchmarks.command.app, "reproduce": reproduce.command.app}
"""What is no verb of ``convattn`` but a program of the checkout."""
SECONDS = 10.0
"""The most that any answer may take."""

SHORT = 12
"""In the default suite every so many-th case runs."""

BY_PROCESS = 40
"""Every so many-th case runs in a process of its own too."""

WARNED_OF = [case for case in CASES if case.name in ("checkpoint-sparse", "header-args-zero")]
"""What a library warns of on the way, which pytest would take off the screen."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """Good files to make bad ones of."""
    from convattn.tasks.recipes import load_recipe
    from convattn.tasks.training import prepare, train

    root = tmp_path_factory.mktemp("stock")
    for name, color in COLORS.items():
        for index in range(6):
            paint(root / "photos" / name / f"{index}.png", color, index)
    settings = {"model": "test_resnet", "data.folder": str(root / "photos"), "data.image_size": 32, "data.workers": 0}
    settings |= {"epochs": 2, "batch_size": 8, "schedule.warmup": 0, "model_args": {}, "trainer.accelerator": "cpu"}
    train(prepare(load_recipe("folder", settings), root / "runs"))
    run = (root / "runs" / "latest").resolve()
    unfinished = root / "unfinished"
    shutil.copytree(run, unfinished)
    for name in ("summary.json", "report.html", "weights.safetensors"):
        (unfinished / name).unlink()
    stored = torch.load(unfinished / "checkpoints" / "last.ckpt", weights_only=True)
    stored["convattn_progress"] |= {"epoch": 1, "batch": 0}
    torch.save(stored, unfinished / "checkpoints" / "last.ckpt")
    return Stock(
        run=run,
        unfinished=unfinished,
        photos=root / "photos",
        coco=write_coco(root / "coco"),
        pairs=write_pairs(root / "pairs"),
        image=root / "photos" / "red" / "0.png",
    )


def test_there_are_as_many_as_are_promised() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


def check(case: Case, code: int, out: str, err: str, seconds: float) -> None:
    """Raise unless an answer is one message, with what it is about."""
    lines = err.splitlines()
    told = [line for line in lines if line.startswith("convattn:")]
    assert code == 2, f"{code}\n{out}\n{err}"
    assert "Traceback" not in err + out
    assert len(told) == 1, err
    assert lines[0] == told[0], err
    below = lines[1:]
    assert not below or case.lists, err
    assert all(line.startswith("  ") for line in below), err
    assert case.says in err
    assert seconds < SECONDS


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if place % SHORT == 0 else pytest.mark.slow)
        for place, case in enumerate(CASES)
    ],
)
def test_bad_input_is_one_message(
    case: Case,
    stock: Stock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.set_num_threads(1)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = case.make(tmp_path, stock)
    before = time.monotonic()
    program = PROGRAMS.get(arguments[0])
    command = caller(program or convattn.cli.app, monkeypatch, capsys)
    done = command(*(arguments[1:] if program else arguments))
    check(case, done.code, done.out, done.err, time.monotonic() - before)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*CASES[::BY_PROCESS], *WARNED_OF)])
def test_bad_input_by_process(case: Case, stock: Stock, tmp_path: Path) -> None:
    words, app = list(map(str, case.make(tmp_path, stock))), "convattn.cli"
    if words[0] in PROGRAMS:
        app = f"{words.pop(0)}.command"
    run = [sys.executable, "-c", f"from convattn.cli import main; from {app} import app; main(app)", *words]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=os.environ | paths)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the processor's seconds: what else the machine does is no matter here
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    check(case, done.returncode, done.stdout, done.stderr, seconds)
