"""Kills, signals and full disks at random moments of a run's whole life, imports and finishing included.

Each is real: another process sends the signal or fills the disk under the run. Then the run is resumed, and ends with
the files of an undisturbed one, byte for byte.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINY
from test_resume import assert_same_run, run_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

COMMAND = [sys.executable, "-c", "from convattn_command import main; main()"]
WORDS = [*TINY, "epochs=6"]
PHASES = ("imports", "training", "finishing")
DISK = 64 * 2**20


@dataclass
class Life:
    """A run in a folder of its own, and how long the phases of an undisturbed one take."""

    folder: Path
    words: list[str]
    seconds: dict[str, float]

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        """Train, or resume what there is, in a process group of its own that answers signals when this returns."""
        begun = (self.out / "latest" / "config.yaml").is_file()
        words = ["--resume", str(self.out / "latest")] if begun else ["--out", str(self.out), *self.words]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "said.txt").open("ab") as said:
            process = subprocess.Popen(
                [*COMMAND, "train", *words], stdout=said, stderr=said, cwd=self.folder, start_new_session=True
            )
        wait(process, lambda: answers_signals(process.pid))
        return process

    def reach(self, process: subprocess.Popen[bytes], phase: str, moments: random.Random) -> bool:
        """Wait for a random moment of a phase; False where the run has ended before."""
        run = self.out / "latest"
        if phase == "training":
            before = stamp(run / "checkpoints" / "last.ckpt")
            wait(process, lambda: stamp(run / "checkpoints" / "last.ckpt") != before)
        elif phase == "finishing":
            before = stamp(run / "weights.safetensors")
            wait(process, lambda: stamp(run / "weights.safetensors") != before)
        time.sleep(moments.uniform(0, self.seconds[phase]))
        return process.poll() is None

    def finish(self) -> None:
        """Go on to the end, undisturbed."""
        process = self.start()
        assert process.wait(300) == 0, self.said[-3000:]


def stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def wait(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def answers_signals(pid: int) -> bool:
    """Tell whether a process has handlers for both signals: before that it is Python that starts, not the command."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), 0)
    return all(caught >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """The undisturbed run."""
    life = Life(tmp_path_factory.mktemp("whole"), [*WORDS, f"--data={photos}", "data.workers=0"], {})
    process, begun = life.start(), time.monotonic()
    run = life.out / "latest"
    wait(process, (run / "config.yaml").is_file)
    trains = time.monotonic()
    wait(process, (run / "weights.safetensors").is_file)
    finishes = time.monotonic()
    wait(process, (run / "report.html").is_file)
    ends = time.monotonic()
    assert process.wait(300) == 0, life.said
    life.seconds = dict(zip(PHASES, (trains - begun, finishes - trains, ends - finishes), strict=True))
    return life


def disturb(
    whole: Life, folder: Path, hits: int, seed: int, strike: Callable[[subprocess.Popen[bytes], random.Random], str]
) -> Counter[str]:
    """Strike runs ``hits`` times, up to four times each, and compare how they end with the undisturbed run."""
    moments, done = random.Random(seed), Counter[str]()
    lives = 0
    while done.total() < hits:
        workers = moments.choice([0, 2])
        words = [word for word in whole.words if not word.startswith("data.workers")] + [f"data.workers={workers}"]
        life = Life(folder / f"life{lives}", words, whole.seconds)
        lives += 1
        for _ in range(4):
            process, phase = life.start(), PHASES[done.total() % 3]
            try:
                if life.reach(process, phase, moments):
                    done[f"{phase}, {strike(process, moments)}"] += 1
                process.wait(300)
            finally:
                process.kill()
                process.wait()
            if done.total() == hits or (life.out / "latest" / "summary.json").is_file():
                break
        life.finish()
        assert "Traceback" not in life.said, life.said
        assert_same_run(run_folder(life.out), run_folder(whole.out))
        shutil.rmtree(life.folder)
    return done


def test_twenty_kills(whole: Life, tmp_path: Path) -> None:
    def kill(process: subprocess.Popen[bytes], _: random.Random) -> str:
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        return "killed" if process.returncode else "was done"

    print(disturb(whole, tmp_path, 20, 1, kill))


def test_twenty_signals(whole: Life, tmp_path: Path) -> None:
    def send(process: subprocess.Popen[bytes], moments: random.Random) -> str:
        number = moments.choice([signal.SIGINT, signal.SIGTERM])
        deliver = moments.choice([os.kill, os.killpg])
        deliver(process.pid, number)
        code = process.wait(60)
        # A signal of the very last moment finds Python's own answers in place again.
        assert code in (130, 0, -number), code
        return f"{deliver.__name__}({number.name}): {code}"

    print(disturb(whole, tmp_path, 20, 2, send))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_at_eight_moments(whole: Life, small_disk: Path) -> None:
    def fill(process: subprocess.Popen[bytes], moments: random.Random) -> str:
        """Leave a few bytes, so that a file is cut in its middle."""
        ballast = small_disk / "ballast"
        left = moments.choice([0, 1, 2, 5, 20]) * 4096
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
            file.truncate(file.tell() - left)
        try:
            code = process.wait(120)
        finally:
            ballast.unlink()
        assert code in (2, 0), code
        return f"{left} bytes left: {code}"

    print(disturb(whole, small_disk, 8, 3, fill))
