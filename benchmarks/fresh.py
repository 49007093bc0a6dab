"""Runs a function of this package in a process of its own: clean threads, instruction set and memory.

The child is this module run as a program: it writes a line of JSON for every event to its standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any, TypeAlias

from benchmarks.record import Isa
from convattn.errors import UserError

OnProgress: TypeAlias = Callable[[float, str], None]
"""Takes the part that is done, 0 to 1, and what is being done."""

TELL_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Process:
    """How a child is started.

    Args:
        threads: torch's.
        isa: the most that oneDNN, torch and our kernels may use; ``"default"`` leaves them alone.
    """

    threads: int = 1
    isa: Isa = "default"

    def variables(self) -> dict[str, str]:
        """The child's environment, less what it inherits.

        Example:
            >>> Process(2, "avx2").variables()["ONEDNN_MAX_CPU_ISA"]
            'AVX2'
        """
        found = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.isa != "default":
            one_dnn = {"avx512": "AVX512_CORE", "avx2": "AVX2", "baseline": "SSE41"}[self.isa]
            torch_own = {"avx512": "avx512", "avx2": "avx2", "baseline": "default"}[self.isa]
            found |= {"ONEDNN_MAX_CPU_ISA": one_dnn, "ATEN_CPU_CAPABILITY": torch_own, "CONVATTN_CPU_ISA": self.isa}
        return found


def silent(done: float, what: str) -> None:
    """Report no progress."""


def call_fresh(
    function: Callable[..., Any], arguments: dict[str, Any], process: Process, on_progress: OnProgress = silent
) -> Any:
    """Call a function of a module of this package in a fresh process and return what it returns.

    Args:
        function: defined at the top of its module; takes ``on_progress`` and the arguments by name.
        arguments: what JSON can hold.
        process: how the child is started.
        on_progress: gets the progress of the child.

    Raises:
        UserError: the child raised one.
        RuntimeError: the child failed otherwise; its own message is passed on.
    """
    job = {"function": f"{function.__module__}:{function.__qualname__}", "arguments": arguments} | asdict(process)
    command = [sys.executable, "-m", "benchmarks.fresh", json.dumps(job)]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | process.variables() | _paths()
        )
        try:
            returned = _listen(child, on_progress)
        finally:
            child.kill()
            child.wait()
        if returned is None:
            errors.seek(0)
            raise RuntimeError(f"measuring failed with code {child.returncode}:\n{errors.read().strip()[-4000:]}")
    if "refused" in returned:
        raise UserError(returned["refused"])
    return returned["returned"]


def _paths() -> dict[str, str]:
    """The child finds what this process does, wherever it was started."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _listen(child: subprocess.Popen[str], on_progress: OnProgress) -> dict[str, Any] | None:
    """What the child returned or refused; None where it ended without."""
    for line in child.stdout or ():
        event: dict[str, Any] = json.loads(line)
        if "progress" not in event:
            child.wait()
            return event if child.returncode == 0 else None
        on_progress(*event["progress"])
    child.wait()
    return None


def _main(job: dict[str, Any]) -> None:
    """The child's part."""
    out = _own_output()
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)

    def write(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    last = 0.0

    def on_progress(done: float, what: str) -> None:
        nonlocal last
        if time.monotonic() - last > TELL_EVERY:  # a parent at work takes time from the measurement
            last = time.monotonic()
            write({"progress": [done, what]})

    module, _, name = job["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        write({"returned": function(on_progress=on_progress, **job["arguments"])})
    except UserError as error:
        write({"refused": str(error)})


def _own_output() -> IO[str]:
    """The standard output for this module alone; what libraries print there goes to the standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
