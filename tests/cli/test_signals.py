"""Ctrl-C and SIGTERM at the command: no traceback, exit code 130."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from convattn.tasks.answers import Answer
from convattn.tasks.interrupt import Stopped, StopRequest, stoppable
from tests.cli.conftest import Command

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4, 0.8])
def test_while_it_imports_the_command_ends_at_once_and_quietly(number: signal.Signals, delay: float) -> None:
    """The later ones come while it imports torch, in which an exception would be lost."""
    program = [sys.executable, "-c", "from convattn_command import main; main()", "info"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not all(caught(status.read_text(), one) for one in SIGNALS):  # before that it is Python that starts
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said in (b"", b"Stopped.\n")  # on a fast machine the imports are over by then


def caught(status: str, number: int) -> bool:
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_predict_leaves_what_it_found_and_says_one_word(
    number: signal.Signals, command: Command, trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the middle of the answers."""

    def answers(*_: object, **__: object) -> Iterator[Answer]:
        yield Answer(0, torch.tensor([0.0, 0.0, 500.0]))
        signal.raise_signal(number)
        pytest.fail("nobody heard the signal")

    monkeypatch.setattr("convattn.tasks.inference.predict", answers)
    found = command("predict", photos / "red" / "00.png", "--run", trained, "--format", "json")
    assert (found.code, found.err) == (130, "Stopped.\n")
    (answer,) = json.loads(found.out)
    assert answer["file"] == str(photos / "red" / "00.png")
    assert answer["predictions"][0] == {"class": "red", "probability": 1.0}


def test_a_signal_that_nobody_heard_is_raised_again() -> None:
    """An exception in a destructor reaches nobody; Python prints it, with its traceback, and goes on."""

    class Closes:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def close() -> None:
        with stoppable():
            Closes()
            time.sleep(20)

    begun = time.monotonic()
    with pytest.raises(Stopped):
        close()
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("outer", "raised"), [(stoppable, Stopped), (nullcontext, KeyboardInterrupt)])
def test_a_second_ctrl_c_ends_training_at_once(
    outer: Callable[[], AbstractContextManager[None]], raised: type[BaseException]
) -> None:
    heard = []

    def press_twice() -> None:
        with outer(), StopRequest(), StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            heard.append(stop.received)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(raised):
        press_twice()
    assert heard == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
