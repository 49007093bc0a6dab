"""The record of the kernels' calls, and the program that repeats them where there is no Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from convattn.ops import Neighborhood, _abi, _native, acmix, attend
from tests.ops.recorded import MAGIC, Recorder, merged

REPLAY = Path(__file__).with_name("replay.cpp")


def record(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of three kernels, one of them with offsets, one with half precision."""
    torch.manual_seed(0)
    window, star = Neighborhood.window(7), Neighborhood(((0, 0), (-2, 1), (0, 3)), border="zeros")
    with file.open("wb") as out:
        Recorder(out).install(monkeypatch.setattr)
        maps = [torch.randn(1, 6, 5, 7).contiguous(memory_format=torch.channels_last) for _ in range(3)]
        for _ in range(2):  # the second is not written again
            attend(*maps, star, num_heads=2, backend="native")
        d, heads = 16, 2
        shapes = [(1, 4, 6, 5), (3 * heads * d, 4, 1, 1), (3 * heads * d,), (d, 2), (3 * heads, 3, 3, heads, d), (1,)]
        inputs = [torch.randn(shape) * 0.3 for shape in shapes]
        for dtype in (torch.float32, torch.bfloat16):
            acmix(*[x.to(dtype) for x in inputs], nbhd=window, num_heads=heads, backend="native")
    monkeypatch.undo()


def test_regions_that_overlap_are_one() -> None:
    assert merged([(40, 50, 0), (0, 10, 0), (8, 20, 0), (20, 30, 4)]) == [(0, 20, 0), (20, 30, 4), (40, 50, 0)]


@pytest.mark.skipif(bool(_native.reasons()), reason="no CPU kernels here")
def test_every_way_to_call_a_kernel_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepared call, as of ACmix's forward pass, is one of them."""
    record(tmp_path / "calls.bin", monkeypatch)
    found = (tmp_path / "calls.bin").read_bytes()
    kernels = b"convattn_attend", b"convattn_acmix_layer_forward", b"convattn_acmix_forward"
    assert [found.count(name) for name in kernels] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(bool(_native.reasons()), reason="no CPU kernels here")
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_what_is_recorded_is_repeated_and_a_wrong_answer_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, program = tmp_path / "calls", tmp_path / "replay"
    record(calls, monkeypatch)
    library = _native.FOLDER / _native.LIBRARY
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run(["g++", "-std=c++17", "-fopenmp", str(REPLAY), *link], check=True)

    def replay() -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, calls], capture_output=True, text=True, check=False)

    done = replay()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{_native.instruction_set()}: 3 calls of 3 kernels, 0 wrong" in done.stdout

    whole = bytearray(calls.read_bytes())
    assert whole[len(MAGIC) + 4 :].startswith(b"convattn_attend")
    calls.write_bytes(whole[:-40])
    assert (replay().returncode, replay().stderr) == (2, "replay: the file ends within a call\n")

    recorder = Recorder((tmp_path / "wrong").open("wb"))
    q = torch.ones(1, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    wrong = _native.library().convattn_attend
    monkeypatch.setattr(recorder, "library", lambda: type("Library", (), {"convattn_attend": staticmethod(off(wrong))}))
    recorder.install(monkeypatch.setattr)
    attend(q, q, q, Neighborhood.window(3), num_heads=2, backend="native")
    recorder.file.close()
    (tmp_path / "wrong").replace(calls)
    done = replay()
    assert done.returncode == 1
    assert "1 calls of 1 kernels, 1 wrong" in done.stdout


def off(kernel: object) -> object:
    """A kernel whose first number is wrong."""

    def call(*arguments: object) -> int:
        assert callable(kernel)
        failed = int(kernel(*arguments))
        out = arguments[-1]._obj  # type: ignore[attr-defined]
        assert isinstance(out, _abi.Map)
        ctypes.c_float.from_address(out.data).value = 7.0
        return failed

    return call
