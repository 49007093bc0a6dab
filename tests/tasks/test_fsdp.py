"""Sharded weights: their checkpoints, which every strategy goes on from, and the networks that are sharded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import TINY
from safetensors.torch import load_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import convattn.models  # noqa: F401
from convattn.errors import UserError
from convattn.layers import ACmix, XVolution
from convattn.tasks.archives import read_archive
from convattn.tasks.checkpoints import write_bytes
from convattn.tasks.fsdp import blocks, gather, shard
from convattn.tasks.recorder import _rates
from convattn.tasks.shards import read_whole, write_shards

CONVATTN = str(Path(sys.executable).with_name("convattn"))
FSDP = ["--devices=2", "--strategy=fsdp"]
WORDS = [
    *TINY,
    "model=acmix_pvt_tiny",
    "model_args={stem: small, depths: [1, 1, 1, 1], embed_dims: [8, 16, 16, 32], num_heads: [1, 2, 2, 4]}",
    "optimizer={name: momentum, lr: 0.02, momentum: 0.9, clip_grad: 1.0}",
    "memory_format=channels_last",
    "epochs=2",
    "trainer.accelerator=cpu",
]
"""A network of layer norms: batch norms of two processes see other batches than those of one."""


def train(*words: str) -> None:
    command = [sys.executable, CONVATTN, "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_inside_an_epoch(out: Path, words: list[str]) -> Path:
    """Train until the first checkpoint inside an epoch, kill both processes, and return the run."""
    last = out / "latest" / "checkpoints" / "last.ckpt"
    with (out.parent / "said.txt").open("w") as said:
        command = [sys.executable, CONVATTN, "train", "--out", str(out), *words]
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    while not last.is_file():
        assert process.poll() is None, (out.parent / "said.txt").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "latest" / "weights.safetensors").exists()
    return (out / "latest").resolve()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


@pytest.mark.slow
def test_a_sharded_run_that_is_killed_ends_bit_equal_and_goes_on_with_one_process(photos: Path, tmp_path: Path) -> None:
    """And the other way round: a checkpoint of one process goes on sharded."""
    words = [f"--data={photos}", *WORDS]
    train("--out", str(tmp_path / "whole"), *words, *FSDP)
    whole = weights(tmp_path / "whole" / "latest")
    killed, to_one = kill_inside_an_epoch(tmp_path / "killed", [*words, *FSDP]), tmp_path / "to_one"
    shutil.copytree(killed, to_one)
    train("--resume", str(killed))
    assert all(torch.equal(value, whole[name]) for name, value in weights(killed).items())
    assert sorted(path.suffix for path in (killed / "checkpoints").iterdir()) == [".ckpt"] * 2 + [".shards"] * 2

    train("--resume", str(to_one), "--devices=1", "--strategy=auto")
    to_two = kill_inside_an_epoch(tmp_path / "to_two", words)
    train("--resume", str(to_two), *FSDP)
    for run in (to_one, to_two):
        torch.testing.assert_close(weights(run), whole, rtol=0, atol=1e-5)


def test_sharded_weights_and_compile_are_refused_together(photos: Path, tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), f"--data={photos}", *WORDS, "--strategy=fsdp", "compile=true"]
    done = subprocess.run([sys.executable, CONVATTN, "train", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "trainer.strategy fsdp" in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("acmix_resnet50", {}, 16),
        ("acmix_swin_tiny", {}, 4),
        ("acmix_pvt_tiny", {}, 4),
        ("acmix_san10", {}, 5),
        ("xvolution_resnet18", {}, 8),
        ("vit_tiny_patch16_224", {}, 12),
    ],
)
def test_no_block_is_inside_an_operator(name: str, options: dict[str, object], least: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, **options)
    found = list(blocks(network))
    assert len(found) >= least
    inside = {
        part for module in network.modules() if isinstance(module, ACmix | XVolution) for part in module.children()
    }
    assert not inside.intersection(found)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def checkpoint(group: None, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of a sharded network, and what it holds."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    shard(network, init_device_mesh("cpu", (1,)))
    path = tmp_path / "last.ckpt"
    for _ in range(2):
        with write_shards(path, {"state_dict": network.state_dict(), "epoch": 3}) as rest:
            write_bytes(path, rest)
    return path, expected


def test_a_sharded_checkpoint_is_read_whole(checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, expected = checkpoint
    found = read_whole(path, "train again")
    assert list(found) == ["state_dict", "epoch"]
    assert list(found["state_dict"]) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found["state_dict"].items())
    assert len(list(path.parent.glob("*.shards"))) == 1, "the former one is removed"


@pytest.mark.parametrize("fault", ["missing", "damaged", "of another checkpoint", "outside"])
def test_what_is_wrong_with_shards_is_said(
    fault: str, checkpoint: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, _ = checkpoint
    (file,) = path.parent.glob("last-*.shards/*")
    if fault == "missing":
        file.unlink()
    elif fault == "damaged":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        stored = read_archive(path, "")
        named = stored["convattn_shards"]
        if fault == "outside":
            named["folder"] = f"../{tmp_path.name}/{named['folder']}/../../elsewhere"
        else:
            stored["state_dict"]["0.weight"] = "convattn_shards:/state_dict/other"
        write_bytes(path, stored)
    said = {
        "missing": f"{file} is missing",
        "damaged": f"{file}: damaged",
        "outside": "elsewhere",
        "of another checkpoint": "not the shards",
    }
    with pytest.raises(UserError, match="train again") as error:
        read_whole(path, "train again")
    assert said[fault] in str(error.value)


def test_a_whole_network_is_gathered(group: None) -> None:
    torch.manual_seed(0)
    network, target = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    expected = [value.clone() for value in network.state_dict().values()]
    shard(network, init_device_mesh("cpu", (1,)))
    gather(network, target)
    assert all(torch.equal(*pair) for pair in zip(target.state_dict().values(), expected, strict=True))
    assert not target.training


def test_the_rates_of_sharded_layers_are_those_of_whole_ones(group: None) -> None:
    network = nn.Sequential(ACmix(8, 8), nn.Sequential(ACmix(8, 8)))
    expected = _rates(SimpleNamespace(model=network))
    shard(network, init_device_mesh("cpu", (1,)))
    assert isinstance(network[0].mix.alpha, DTensor)
    assert _rates(SimpleNamespace(model=network)) == expected
    assert [name for name, _, _ in expected] == ["0", "1.0"]
