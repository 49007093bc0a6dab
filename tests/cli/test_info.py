"""``convattn info``."""

import json

import pytest
import timm
import torch

import convattn
from convattn.cli.info import _backends
from tests.cli.conftest import Command


def test_json(command: Command) -> None:
    result = command("info", "--json")
    found = json.loads(result.out)
    assert found["versions"]["convattn"] == convattn.__version__
    assert found["versions"]["timm"] == timm.__version__
    assert found["machine"]["devices"][0] == "cpu"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["ops"] == convattn.ops.backends()


def test_for_people(command: Command) -> None:
    out = command("info").out
    for name in ("versions", "machine", "operators", "attend", "available", torch.__version__.split("+")[0]):
        assert name in out


def test_a_backend_that_is_off_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=100).print(_backends({"attend": {"eager": [], "triton": ["no CUDA device", "needs [gpu]"]}}))
    head, first, second = capsys.readouterr().out.splitlines()[1:]
    assert head.split() == ["operator", "backend"]
    assert first.split() == ["attend", "eager", "available"]
    assert second.split(maxsplit=1) == ["triton", "off: no CUDA device; needs [gpu]"]
