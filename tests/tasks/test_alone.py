"""One process at a time in a run's folder."""

import errno
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from conftest import TINY, Start
from test_resume import WAIT, run_folder, wait_for

from convattn.errors import UserError
from convattn.tasks.alone import alone

fcntl = pytest.importorskip("fcntl")
FORK = multiprocessing.get_context("fork")


def hold(folder: Path, told: Connection, *, with_child: bool) -> None:
    with alone(folder, "trains"):
        child = os.fork() if with_child else os.getpid()  # as a loader's worker, which outlives it by some seconds
        if child:
            told.send(child)
        time.sleep(WAIT)


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BaseProcess]:
    """Another process that holds the folder."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs), kwargs={"with_child": request.param})
    process.start()
    child = ours.recv()
    yield process
    process.kill()
    process.join()
    if request.param:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("holder", [False], indirect=True)
def test_the_second_is_told_who_holds_it(holder: BaseProcess, tmp_path: Path) -> None:
    message = re.escape(
        f"{tmp_path}: process {holder.pid} on {socket.gethostname()} trains there:"
        f" wait until it ends, or end it first (kill {holder.pid})"
    )
    with pytest.raises(UserError, match=f"^{message}$"), alone(tmp_path, "trains"):
        pass


@pytest.mark.parametrize("holder", [False, True], indirect=True, ids=["alone", "with a worker that lives on"])
def test_a_killed_process_holds_nothing(holder: BaseProcess, tmp_path: Path) -> None:
    holder.kill()
    holder.join()
    with alone(tmp_path, "trains"), alone(tmp_path, "trains"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}"


def test_where_the_file_system_has_no_locks_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with alone(tmp_path, "trains"):
        pass


def test_a_run_that_trains_is_not_resumed_beside(start: Start, photos: Path, tmp_path: Path) -> None:
    first = start(["train", "--out", str(tmp_path / "runs"), *TINY, f"--data={photos}", "epochs=1000"])
    wait_for(lambda: (run_folder(tmp_path / "runs") / "checkpoints" / "last.ckpt").is_file())
    run = run_folder(tmp_path / "runs")
    second = start(["train", "--resume", str(run)])
    second.join(WAIT)
    assert second.exitcode == 2
    assert f"convattn: {run}: process {first.pid} on {socket.gethostname()} trains there: wait until it ends," in (
        tmp_path / "output.txt"
    ).read_text(encoding="utf-8")
    os.kill(first.pid, signal.SIGTERM)
    first.join(WAIT)
    assert first.exitcode == 130
    assert "Traceback" not in (tmp_path / "output.txt").read_text(encoding="utf-8")
