"""What ``convattn train`` needs to start on many small images: seconds until the first step, and peak memory."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from lightning import Callback

from benchmarks import photos
from benchmarks.fresh import OnProgress, Process, call_fresh, silent
from benchmarks.peak import peak_bytes
from benchmarks.record import TIME, Record, Series
from benchmarks.run import Run, begun, rounds_of
from convattn.tasks import train

FEW, FEW_IMAGES = "200 images in class folders", 200
PEAK_MEMORY = "peak memory"
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class Starting(Run):
    """What is asked for.

    Args:
        images: How many.
        workers: Processes that load.
    """

    images: int = 200_000
    workers: int = 1


def measure(run: Starting, on_progress: OnProgress = silent) -> Record:
    """Start training on the same images in every form, each time in a process of its own.

    Raises:
        UserError: the machine is busy.
        RuntimeError: a process failed.
    """
    process, files = Process(run.threads), photos.draw(SIDE, "PNG")
    taken, where = begun(run)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        on_progress(0.0, "writing images")
        few = photos.write(Path(folder, "few"), FEW_IMAGES, files, "png")["class folders"]
        subjects = {FEW: few} | photos.write(Path(folder, "many"), run.images, files, "png")
        for _, name in rounds_of(run.rounds, subjects, on_progress):
            arguments = {"data": str(subjects[name]), "out": str(Path(folder, "runs")), "workers": run.workers}
            found.setdefault(name, []).append(call_fresh(start_here, arguments, process))
    case = run.facts("images", "workers", "rounds") | {"side": SIDE, "base": FEW}
    results = {
        name: {
            TIME: Series("s", tuple(one[TIME] for one in runs)),
            PEAK_MEMORY: Series("bytes", tuple(int(one[PEAK_MEMORY]) for one in runs)),
        }
        for name, runs in found.items()
    }
    return Record("start", taken, where, case, results)


class _FirstStep(Exception):
    """The first step is done."""


class _Stop(Callback):
    """Ends training after its first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise _FirstStep


def start_here(data: str, out: str, workers: int, on_progress: OnProgress = silent) -> dict[str, float]:
    """Train until the first step is done, in this process: seconds since the process began, and its peak memory."""
    settings = {"model": "test_resnet", "model_args": {}, "data.image_size": 32, "data.workers": workers}
    settings |= {"batch_size": 64, "trainer.accelerator": "cpu", "trainer.loggers": []}
    try:
        train("folder", settings, data=data, out=out, callbacks=[_Stop()])
    except _FirstStep:
        return {TIME: time.time() - psutil.Process().create_time(), PEAK_MEMORY: peak_bytes()}
    raise RuntimeError("training ended before its first step")
