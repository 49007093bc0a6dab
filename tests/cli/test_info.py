"""``convattn info``."""

import json
from pathlib import Path

import pytest
import timm
import torch

import convattn
from convattn.cli.info import _backends
from convattn.ops import _native
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
    for name in ("versions", "machine", "native", "operators", "attend", "available", torch.__version__.split("+")[0]):
        assert name in out


def test_a_backend_that_is_off_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=100).print(_backends({"attend": {"eager": [], "triton": ["no CUDA device", "needs [gpu]"]}}))
    head, first, second = capsys.readouterr().out.splitlines()[1:]
    assert head.split() == ["operator", "backend"]
    assert first.split() == ["attend", "eager", "available"]
    assert second.split(maxsplit=1) == ["triton", "off: no CUDA device; needs [gpu]"]


@pytest.mark.skipif(bool(_native.reasons()), reason="; ".join(_native.reasons()))
def test_the_native_library(command: Command) -> None:
    native = json.loads(command("info", "--json").out)["native"]
    assert native["state"] == "available"
    assert native["library"] == "libconvattn.so"
    assert native["instruction set"] == _native.instruction_set()
    assert native["instruction set"] in native["compiled for"]
    assert native["threads"] == torch.get_num_threads()
    assert native["compiler"]


def test_a_native_library_that_is_off_says_why(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "kernels.cpp:7: error: no [such] thing"
    build = {"built": False, "reason": f"g++ failed: {message}\nIn file included from here", "isas": []}
    (tmp_path / "build.json").write_text(json.dumps(build | {"compiler": "g++ 12"}))
    record = _native.build_record(tmp_path)
    monkeypatch.setattr(_native, "_loaded", _native.load(tmp_path))
    monkeypatch.setattr(_native, "build_record", lambda: record)

    native = json.loads(command("info", "--json").out)["native"]
    assert native["state"].startswith(f"off: the library was not built: g++ failed: {message}; to have it, install GCC")
    assert native["compiler's message"] == "In file included from here"
    assert native["compiler"] == "g++ 12"
    assert "library" not in native

    out = command("info").out
    assert message in out
    assert "make native" in out
