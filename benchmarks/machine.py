"""What a benchmark's record says about the machine it ran on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil
import torch

import convattn
from benchmarks.record import Environment, Isa
from convattn.cli.bench import usable_cores
from convattn.cli.info import version_of

PACKAGE = Path(convattn.__file__).parent
COMMIT = re.compile("[0-9a-f]{7,40}")


def environment(threads: int, *, isa: Isa = "default", device: str = "cpu") -> Environment:
    """This machine and its software, as of now.

    Args:
        threads: that torch has.
        isa: the instruction set that this process was started with.
        device: where the measurement runs.

    Example:
        >>> environment(threads=1).threads
        1
    """
    return Environment(
        commit=commit(),
        convattn=convattn.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=threads,
        load=round(psutil.getloadavg()[0], 2),
        gpu="none" if device == "cpu" else torch.cuda.get_device_name(device),
        isa=isa,
        kernels=kernels_isa(),
        timm=version_of("timm"),
        triton=version_of("triton"),
        natten=version_of("natten"),
    )


def now() -> str:
    """The time for a record's ``taken``."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def commit() -> str:
    """The commit of the checkout that this package runs from; where git is not there, ``CONVATTN_COMMIT`` says it."""
    if named := os.environ.get("CONVATTN_COMMIT"):
        return named
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top) / "src" / "convattn" != PACKAGE.resolve():
        return "unknown"
    dirty = _git("status", "--porcelain", "--untracked-files=no")
    return f"{_git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{'-dirty' if dirty else ''}"


@cache
def day_of(commit: str) -> str:
    """The day of a commit of this checkout, as 2026-01-31; "" of one that it does not know."""
    name = commit.removesuffix("-dirty")
    return _git("show", "-s", "--format=%as", name, "--") if COMMIT.fullmatch(name) else ""


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def kernels_isa() -> str:
    """The instruction set of our CPU kernels in this process, or why they are off."""
    from convattn.ops import _native

    reasons = _native.reasons()
    return f"off: {'; '.join(reasons)}" if reasons else _native.instruction_set()


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"
