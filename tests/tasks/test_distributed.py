import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import TINY
from test_resume import assert_same_run
from timm.layers import DropPath
from torch import nn

from convattn.tasks.checkpoints import read_checkpoint
from convattn.tasks.randomness import share_drop_path

SGD = [
    *TINY,
    "model=test_vit",
    "model_args={img_size: 32, drop_path_rate: 0.3}",
    "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
    "epochs=2",
    "trainer.accelerator=cpu",
]

CONVATTN = str(Path(sys.executable).with_name("convattn"))


def train(photos: Path, out: Path, *more: str) -> Path:
    command = [
        sys.executable,
        CONVATTN,
        "train",
        "--data",
        str(photos),
        "--out",
        str(out),
        *SGD,
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (out / "latest").resolve()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_end_where_one_does(strategy: str, photos: Path, tmp_path: Path) -> None:
    one = train(photos, tmp_path / "one")
    two = train(photos, tmp_path / "two", "--devices=2", f"--strategy={strategy}")
    assert [path.name for path in (tmp_path / "two").iterdir() if not path.is_symlink()] == [two.name]
    same_end(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_stop_on_a_signal_to_both_and_go_on(number: int, photos: Path, tmp_path: Path) -> None:
    """Epochs of eight batches: the processes agree at the end of one, if not before."""
    words = [sys.executable, CONVATTN, "train", "--devices=2", "--strategy=ddp"]
    log, last = tmp_path / "said.txt", tmp_path / "latest" / "checkpoints" / "last.ckpt"
    with log.open("w") as file:
        command = [*words, "--data", str(photos), "--out", str(tmp_path), *SGD, "epochs=500", "checkpoint={}"]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    while not last.is_file():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(60) == 130, log.read_text()
    assert "Go on with:" in log.read_text()
    assert "Traceback" not in log.read_text()
    config = tmp_path / "latest" / "config.yaml"
    epoch = read_checkpoint(last)["convattn_progress"]["epoch"]
    config.write_text(config.read_text().replace("epochs: 500", f"epochs: {epoch + 1}"))
    done = subprocess.run([*words, "--resume", str(tmp_path / "latest")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_machines_under_torchrun_end_where_one_does(photos: Path, tmp_path: Path) -> None:
    """As docs/scale.md has it; the machines are processes here, each with its own --out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    program += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    words = ["--data", str(photos), "--devices=1", "--num-nodes=2", "--strategy=ddp", *SGD]
    outs = [tmp_path / "first", tmp_path / "second"]
    machines = []
    for rank, out in enumerate(outs):
        command = [*program, f"--node-rank={rank}", "--no-python", CONVATTN, "train", "--out", str(out), *words]
        machines.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for machine in machines:
        said, _ = machine.communicate(timeout=300)
        assert machine.returncode == 0, said
    assert not outs[1].exists(), "the first process alone writes"
    same_end(train(photos, tmp_path / "one"), (outs[0] / "latest").resolve())


@pytest.mark.slow
def test_a_killed_process_is_restarted_by_torchrun_and_the_run_ends_bit_equal(photos: Path, tmp_path: Path) -> None:
    words = ["--data", str(photos), "--devices=2", "--strategy=ddp", *SGD]
    whole = train(photos, tmp_path / "whole", "--devices=2", "--strategy=ddp")
    out, log = tmp_path / "restarted", tmp_path / "said.txt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with log.open("w") as said:
        command += ["--no-python", CONVATTN, "train", "--out", str(out), *words]
        torchrun = subprocess.Popen(command, stdout=said, stderr=said)
    last = out / "latest" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert torchrun.poll() is None, log.read_text()
        time.sleep(0.01)
    (second,) = (one for one in psutil.Process(torchrun.pid).children() if one.environ().get("RANK") == "1")
    second.kill()
    assert not (out / "latest" / "summary.json").exists(), "the run ended before its process was killed"
    assert torchrun.wait(300) == 0, log.read_text()
    assert "started again, goes on" in log.read_text()
    (run,) = (path for path in out.iterdir() if not path.is_symlink())
    assert_same_run(run, whole)


def same_end(one: Path, two: Path) -> None:
    """Two runs have the same weights and the same epochs, to rounding."""
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (one, two))
    assert any(name.startswith("student.") for name in ours)
    for name, value in ours.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for mine, other in zip(*(row[1:] for row in rows), strict=True):
        numbers = [torch.tensor([float(item) for item in line.split(",")[:-1]]) for line in (mine, other)]
        torch.testing.assert_close(*numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_drop_path_is_timms_on_the_global_batch(world: int) -> None:
    images = torch.arange(1.0, 9.0).view(8, 1).repeat(1, 3)
    torch.manual_seed(0)
    expected = DropPath(0.4).train()(images)
    for rank in range(world):
        model = nn.Sequential(DropPath(0.4)).train()
        share_drop_path(model, rank=rank, world=world)
        torch.manual_seed(0)
        torch.testing.assert_close(model(images[rank::world]), expected[rank::world], rtol=0, atol=0)
        assert torch.equal(model.eval()(images), images)
