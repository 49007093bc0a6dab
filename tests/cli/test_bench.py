"""``convattn bench``: an operator or a network beside its plain twin."""

import re
import time

import pytest
import torch

from convattn.cli.bench import ROUNDS, choose_threads, time_in_turns
from tests.cli.conftest import Command

QUICK = ("--seconds", 0.05, "--threads", 1)


@pytest.mark.parametrize(
    ("words", "rows", "step"),
    [
        (("acmix", "--channels", 8, "--size", 7), ("Conv2d(8, 8, 3)", "ACmix(8, 8)"), "bench acmix_resnet50"),
        (
            ("acmix_resnet14", "--size", 64, "--batch", 2, "--mode", "train"),
            ("conv_resnet14", "acmix_resnet14"),
            "cost acmix_resnet14 conv_resnet14",
        ),
    ],
    ids=["operator", "network"],
)
def test_both_are_timed_and_shown(command: Command, words: tuple[object, ...], rows: tuple[str, str], step: str):
    found = command("bench", *words, *QUICK)
    assert found.code == 0, found.err
    plain, ours = (next(line for line in found.out.splitlines() if f" {name} " in line) for name in rows)
    assert re.search(r"[\d.]+ │ +[\d.]+–[\d.]+ │ +1 │$", plain), "milliseconds, their quartiles, and itself"
    assert re.search(r"[\d.]+ │ +[\d.]+–[\d.]+ │ +\d+\.\d\d │$", ours)
    assert f"next: convattn {step}" in found.out
    assert "1 thread" in found.out


def test_a_ratio_is_what_one_call_takes_of_the_other():
    calls = {"short": lambda: time.sleep(1e-3), "long": lambda: time.sleep(4e-3)}
    found = time_in_turns(calls, threads=1, seconds=0.1)
    assert found["short"].ratio == 1
    assert 2 < found["long"].ratio < 5
    assert len(found["long"].seconds) >= ROUNDS
    assert min(found["long"].seconds) >= 4e-3


def test_the_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)), raising=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # as OMP_NUM_THREADS=2 has torch start
        for name, wanted in (("2", 2), ("", 4)):
            monkeypatch.setenv("OMP_NUM_THREADS", name)
            assert choose_threads(None) == wanted
            assert choose_threads(3) == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("acmix_resnet5", "no operator or network 'acmix_resnet5'; did you mean acmix_resnet50"),
        ("resnet50", "resnet50 is no variant of a plain network: name one to compare it with, --against"),
        ("acmix --against resnet18", "--against is for networks"),
        ("acmix --channels 6", "--channels must be divisible by 4, got 6"),
        ("acmix --mode backward", "--mode must be forward or train, got 'backward'"),
        ("acmix --threads 4096", "--threads must be at most"),
        ("acmix --device mps", "--device must be cpu, cuda or cuda:<number>, got 'mps'"),
        ("acmix --device cuda:99", "--device cuda:99: torch finds"),
        (
            "acmix_resnet14 --size 32 --mode train",
            "conv_resnet14 cannot take images of 1×3×32×32: Expected more",
        ),
    ],
)
def test_what_cannot_be_timed_is_refused(command: Command, words: str, why: str):
    found = command("bench", *words.split())
    assert found.code == 2
    assert why in found.err
