"""Disk full, a limit on files, no permission, a folder gone: one message and code 2; the run goes on afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import convattn
from convattn.cli._faults import message_of
from convattn.data.writing import write_table, write_text
from convattn.errors import UserError
from convattn.tasks.checkpoints import write_bytes
from convattn.tasks.run_folder import append_rows
from tests.cli.conftest import Command

resource = pytest.importorskip("resource")

SLOW = pytest.mark.slow
SLOWER = [pytest.param(most, marks=SLOW) for most in (400, 4_000, 1_000_000, 3_000_000)]

TINY = ["model=test_resnet", "model_args={}", "data.image_size=32", "batch_size=256", "--accelerator", "cpu"]
"""The digits in seconds."""


pytestmark = pytest.mark.usefixtures("here")


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Lower a limit of this process, and put it back."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("convattn: ")
    return lines[0]


@pytest.mark.parametrize("most", [100_000, *SLOWER])
def test_a_limit_on_files_stops_a_run_that_then_goes_on(command: Command, here: Path, most: int) -> None:
    with limited(resource.RLIMIT_FSIZE, most):
        done = command("train", *TINY, "--epochs", 1)
    assert done.code == 2
    line = one_line(done.err)
    assert "File too large; raise the limit on the size of files (ulimit -f)" in line
    runs = [path.parent for path in here.glob("runs/*/config.yaml") if not path.parent.is_symlink()]
    assert not list(here.glob("runs/*/checkpoints/.*.tmp"))
    if runs:
        assert f"then go on with: convattn train --resume runs/{runs[0].name}" in line.replace(f"{here}/", "")
        done = command("train", "--resume", runs[0])
        assert done.code == 0
        assert (runs[0] / "report.html").is_file()


@pytest.mark.slow
def test_a_full_disk_stops_a_run_that_then_goes_on(command: Command, here: Path) -> None:
    disk = here / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        done = command("train", *TINY, "--epochs", 3, "--out", disk)
        assert done.code == 2
        line = one_line(done.err)
        assert "No space left on device; free space on its disk, then go on with: convattn train --resume" in line
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        assert command("train", "--resume", disk / "latest").code == 0
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = command("train", *TINY, "--epochs", 1, "--out", disk)
        assert "Read-only file system" in one_line(done.err)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["remove", "rename"])
def test_a_folder_that_goes_under_a_run(command: Command, here: Path, change: str) -> None:
    def go() -> None:
        while not list(here.glob("runs/*/checkpoints/last.ckpt")):
            time.sleep(0.01)
        if change == "rename":
            (here / "runs").rename(here / "elsewhere")
        else:
            shutil.rmtree(here / "runs", ignore_errors=True)

    thread = threading.Thread(target=go)
    thread.start()
    done = command("train", *TINY, "--epochs", 8)
    thread.join()
    assert done.code == 2
    assert "No such file or directory; it, or a folder above it, is not there (any more)" in one_line(done.err)
    if change == "rename":
        assert command("train", "--resume", here / "elsewhere" / "latest", "trainer.devices=1").code == 0


def test_too_many_open_files(command: Command, trained: Path, photos: Path) -> None:
    command("val", "--run", trained)  # whatever is imported is there
    free = os.dup(0)
    os.close(free)
    with limited(resource.RLIMIT_NOFILE, free):
        done = command("val", "--run", trained)
    assert done.code == 2
    assert "Too many open files; raise the limit on open files (ulimit -n)" in one_line(done.err)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_a_run_that_may_not_be_read(command: Command, trained: Path, photos: Path, here: Path) -> None:
    run = here / "run"
    shutil.copytree(trained, run)
    run.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        done = command("predict", photos / "red" / "00.png", "--run", run)
    finally:
        if is_root:
            os.seteuid(0)
        run.chmod(0o700)
    assert done.code == 2
    assert "Permission denied; change its permissions" in one_line(done.err)


@pytest.mark.parametrize("words", [["info", "--json"], pytest.param(["list"], marks=SLOW)])
def test_what_is_printed_to_a_full_disk(words: list[str]) -> None:
    run = [sys.executable, "-c", "from convattn.cli import main; main()", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert ": No space left on device; free space on its disk" in one_line(done.stderr)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, bytes(9000)),
        lambda path: write_bytes(path, {"a": torch.zeros(9000)}),
        lambda path: write_text(path, "x" * 9000),
        lambda path: write_table(path, ["a"], [["x" * 9000]]),
        lambda path: append_rows(path, [["x" * 9000]]),
    ],
)
def test_what_writes_a_file_names_it(write, here: Path) -> None:
    path = here / "a.file"
    with limited(resource.RLIMIT_FSIZE, 4000), pytest.raises(OSError, match="File too large") as caught:
        write(path)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)


def test_a_fault_of_ours_keeps_its_traceback(here: Path) -> None:
    package = Path(convattn.__file__).parent
    for fault in (
        ValueError("no"),
        OSError("no number"),
        OSError(errno.EINVAL, "Invalid argument", "a.txt"),
        OSError(errno.EBADF, "Bad file descriptor"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", str(package / "recipes" / "digits.yaml")),
        RuntimeError("shared memory of the kernel is too small"),
        KeyError("a"),
    ):
        assert message_of(fault) is None
    with pytest.raises(FileNotFoundError) as caught:
        subprocess.run([str(here / "no-such-program")])
    assert message_of(caught.value) is None


def test_an_error_in_a_worker_is_told_without_its_traceback() -> None:
    text = "Caught {} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n{}\n"
    user = UserError(text.format("UserError", "convattn.errors.UserError: none of the images can be read"))
    assert message_of(user) == "none of the images can be read"
    disk = OSError(text.format("OSError", "OSError: [Errno 28] No space left on device: 'a.csv'"))
    assert message_of(disk) == "a.csv: No space left on device; free space on its disk"
    assert message_of(KeyError(text.format("KeyError", "KeyError: 'a'"))) is None


def test_a_message_does_not_steer_the_terminal() -> None:
    assert message_of(UserError("a\x1b[2Jb\u202ec: \ud800")) == "a\\x1b[2Jb\\u202ec: \\ud800"
    long = message_of(UserError("x" * 9000))
    assert long is not None
    assert len(long) < 2100
