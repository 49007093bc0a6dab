"""The GPU backend: its contract in a process of its own, and what it says where it cannot run."""

import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from convattn.ops import Neighborhood, _dispatch, attend, backends
from convattn.ops._triton import kept_on_gpu

ROOT = Path(__file__).parents[2]
CONTRACT = "tests/ops/triton_contract.py"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run_contract(marks, **environment):
    """Run the contract's tests with the marks given; their report where one fails.

    In a process of its own: Triton reads TRITON_INTERPRET when it is imported.
    """
    quiet = ["-p", "no:cacheprovider", "-p", "no:warnings"]
    command = [sys.executable, "-m", "pytest", CONTRACT, "-m", marks, *quiet]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)
    assert "[100%]" in done.stdout


@needs_triton
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_contract_under_the_interpreter(marks):
    run_contract(marks, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_contract_on_the_gpu():
    run_contract("slow or not slow", TRITON_INTERPRET="0")


@without_gpu
@pytest.mark.parametrize("op", ["attend", "correlate", "aggregate", "scatter", "pixel_shift_attention"])
def test_info_says_why_the_backend_is_off(op):
    assert "needs an NVIDIA or AMD GPU; torch finds none" in backends()[op]["triton"]


@without_gpu
def test_a_backend_that_cannot_run_says_why():
    x = torch.zeros(1, 4, 3, 3)
    with pytest.raises(ValueError, match="backend 'triton' of attend cannot run here: needs an NVIDIA or AMD GPU"):
        attend(x, x, x, Neighborhood.window(3), backend="triton")
    with pytest.raises(ValueError, match=r"computes in float32.*float64"):
        attend(x.double(), x.double(), x.double(), Neighborhood.window(3), backend="triton")


def test_the_package_imports_without_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import convattn\n"
        "print(convattn.ops.backends()['attend']['triton'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs the package triton, which is not installed" in done.stdout


def test_tables_of_a_captured_graph_are_kept(monkeypatch):
    """A CUDA graph reads them at every replay, however many other sizes were met since."""
    made = weakref.WeakSet()

    @kept_on_gpu
    def table(size):
        found = torch.zeros(size)
        made.add(found)
        return found

    monkeypatch.setattr(_dispatch, "is_capturing_a_graph", lambda: True)
    table(1)
    monkeypatch.undo()
    for size in range(2, 400):
        table(size)
    assert 1 in {len(found) for found in made}
    assert 2 not in {len(found) for found in made}
