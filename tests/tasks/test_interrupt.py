"""What a loader's workers do with signals."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from convattn.tasks.interrupt import held_signals, obey_parent_alone


def work(told: Connection) -> None:
    told.send(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    time.sleep(0.3)  # what comes before it can answer must wait
    obey_parent_alone()
    told.send("at work")
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal")
def test_a_worker_obeys_its_parent_alone() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with held_signals():
        worker = context.Process(target=work, args=(theirs,), daemon=True)
        worker.start()
    assert ours.recv() >= {signal.SIGINT, signal.SIGTERM}
    for _ in range(2):
        for number in (signal.SIGINT, signal.SIGTERM):
            stranger = os.fork()
            if not stranger:
                os.kill(worker.pid, number)
                os._exit(0)
            os.waitpid(stranger, 0)
        if ours.poll(5):
            assert ours.recv() == "at work"
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}
