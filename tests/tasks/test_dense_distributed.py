"""Two processes (gloo) end where one does, where each image's part of the loss does not depend on its neighbours.

What that asks for: batch norms that do not train, or layer and group norms in their place; no dropout of single
channels, which each process draws for itself; images of one size, none padded to another's; and for the R-CNNs samples
of anchors and regions that every image fills, since each process divides by its own count.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dense_runs import TINY

from convattn.tasks.checkpoints import read_checkpoint

SGD = ["optimizer={name: momentum, lr: 0.02, momentum: 0.9, clip_grad: null}", "schedule.warmup=0", "epochs=2"]
FROZEN = "min_size: null, max_size: 128, channels: 16, batch_norms: frozen, score_threshold: 0.0"
RCNN = "fc_channels: 16, proposals: [400, 300], regions_per_image: 8, anchor_scale: 4"
PVT = "{embed_dims: [8, 16, 16, 32], num_heads: [1, 2, 2, 4], depths: [1, 1, 1, 1]}"
GROUPS = "network.args={pyramid_channels: 16, channels: 32, norm: group, dropout: 0}"
SETUPS = {
    "retinanet": ("detection", [f"network={{head: retinanet, args: {{{FROZEN}, anchor_scale: 2}}}}"]),
    "faster_rcnn": ("detection", [f"network={{head: faster_rcnn, args: {{{FROZEN}, {RCNN}}}}}"]),
    "semantic_fpn": (
        "segmentation",
        [
            "segmentation_augment={crop: [128, 128], scale: [1, 1]}",
            "optimizer.lr=0.005",
            "model=pvt_v1_tiny",
            f"model_args={PVT}",
            GROUPS,
        ],
    ),
}


def train(folder: Path, out: Path, head: str, *more: str) -> Path:
    task, words = SETUPS[head]
    command = [sys.executable, str(Path(sys.executable).with_name("convattn")), "train", f"--recipe=scenes-{task}"]
    command += [*TINY[task], *SGD, *words, f"data.folder={folder}", "--out", str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (out / "latest").resolve()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet", "faster_rcnn"])
def test_two_processes_end_where_one_does(head: str, folder: Path, tmp_path: Path) -> None:
    one = train(folder, tmp_path / "one", head)
    two = train(folder, tmp_path / "two", head, "--devices=2", "--strategy=ddp")
    assert [path.name for path in (tmp_path / "two").iterdir() if not path.is_symlink()] == [two.name]
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (one, two))
    for name, value in ours.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    tables = [(run / "metrics.csv").read_text().splitlines() for run in (one, two)]
    assert tables[0][0] == tables[1][0]
    assert len(tables[0]) == len(tables[1]) == 3
    for mine, other in zip(*(lines[1:] for lines in tables), strict=True):
        numbers = [torch.tensor([float(item or "nan") for item in line.split(",")[:-1]]) for line in (mine, other)]
        torch.testing.assert_close(*numbers, rtol=1e-4, atol=1e-5, equal_nan=True)
