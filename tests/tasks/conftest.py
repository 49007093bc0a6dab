import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = [
    "--recipe=digits",
    "model=test_resnet",
    "model_args={drop_path_rate: 0.3}",
    "epochs=12",
    "batch_size=16",
    "mix={mixup: 0.3, cutmix: 0.5}",
    "augment.random_erasing=0.3",
    "ema.decay=0.9",
    "memory_format=contiguous",
    "checkpoint={every_seconds: null, every_steps: 2}",
]
"""Everything random turned on, in 96 small steps."""

Start = Callable[[list[str]], ForkServerProcess]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 160 small images in 4 classes, each a colour with noise."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for label, colour in enumerate([(200, 60, 60), (60, 200, 60), (60, 60, 200), (180, 180, 60)]):
        (root / f"class{label}").mkdir()
        for number in range(40):
            pixels = np.clip(noise.normal(colour, 60, (24, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{number:02}.png")
    return root


def _command(arguments: list[str], folder: str) -> None:
    os.setsid()  # a process group of its own, that a signal can be sent to
    os.chdir(folder)
    sys.stdout = sys.stderr = open("output.txt", "a", encoding="utf-8")  # noqa: SIM115
    multiprocessing.set_start_method("fork", force=True)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["convattn", *arguments]
    from convattn.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()


@pytest.fixture(scope="session")
def fork_server() -> multiprocessing.context.ForkServerContext:
    """Processes of their own that start with the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["convattn.cli", "convattn.tasks.training", "convattn.tasks.progress", "conftest"])
    return context


@pytest.fixture
def start(fork_server: multiprocessing.context.ForkServerContext, tmp_path: Path) -> Iterator[Start]:
    """Start ``convattn ARGUMENTS`` in a process of its own in the test's folder."""
    running = []

    def launch(arguments: list[str]) -> ForkServerProcess:
        process = fork_server.Process(target=_command, args=(arguments, str(tmp_path)))
        process.start()
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the scenes as a folder, which processes of their own can read."""
    from convattn.data.scenes import SceneSettings, write_scenes

    root = tmp_path_factory.mktemp("folder") / "scenes"
    write_scenes(root, SceneSettings(train=8, val=4))
    return root
