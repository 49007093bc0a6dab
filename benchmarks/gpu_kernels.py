"""What every Triton kernel takes of a GPU, compiled without one: registers, spills, shared memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.fresh import OnProgress, silent
from benchmarks.gpu_cases import BFLOAT, FLOAT, networks
from benchmarks.gpu_compile import SHARED, Resources, launches, resources
from convattn.errors import UserError
from convattn.publishing import markdown_table

PAGE = "gpu-kernels.md"
RECORD = "gpu/kernels.json"
DTYPES = (BFLOAT, FLOAT)


@dataclass(frozen=True)
class KernelRow:
    """One kernel at one shape on one GPU.

    Args:
        case: what it does, and at which shape.
        dtype: of the maps.
        kernel: its module and function.
        arch: compute capability times ten.
        triton: the compiler's version.
        taken: what it takes.
    """

    case: str
    dtype: str
    kernel: str
    arch: int
    triton: str
    taken: Resources


def measure(record: Path, archs: Sequence[int], on_progress: OnProgress = silent) -> list[KernelRow]:
    """Compile every kernel; the record is written as it goes, and a second call goes on.

    Raises:
        UserError: an unknown compute capability, or a record that cannot be read.
    """
    if unknown := sorted(set(archs) - set(SHARED)):
        raise UserError(f"--arch knows {', '.join(map(str, SHARED))}, got {', '.join(map(str, unknown))}")
    rows = read(record) if record.is_file() else []
    there = {(row.case, row.dtype, row.arch) for row in rows if row.triton == triton.__version__}
    jobs = [(str(dtype).removeprefix("torch."), dtype, arch) for dtype in DTYPES for arch in archs]
    wanted = [(case, name, arch, work) for name, dtype, arch in jobs for case, work in networks(dtype).items()]
    for place, (case, name, arch, work) in enumerate(wanted):
        if (case, name, arch) in there:
            continue
        on_progress(place / len(wanted), f"{case}, {name}, sm_{arch}")
        rows = [row for row in rows if (row.case, row.dtype, row.arch) != (case, name, arch)]
        found = [(launch.name, resources(launch, arch)) for launch in launches(work)]
        rows += [KernelRow(case, name, kernel, arch, triton.__version__, taken) for kernel, taken in found]
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return rows


def read(record: Path) -> list[KernelRow]:
    """The rows of a record.

    Raises:
        UserError: there is none, or it is no record of kernels.
    """
    try:
        found: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
        return [KernelRow(**(one | {"taken": Resources(**one["taken"])})) for one in found]
    except OSError as error:
        raise UserError(f"{record}: {error.strerror}; write it with: python -m benchmarks gpu-kernels") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{record}: no record of kernels ({error}); delete it and write it again") from error


def page(rows: Sequence[KernelRow]) -> str:
    """The table as Markdown."""
    by_place = {(row.case, row.dtype, row.kernel, row.arch): row.taken for row in rows}
    archs = sorted({row.arch for row in rows})
    names = dict.fromkeys((row.case, row.dtype, row.kernel) for row in rows)
    lines = [
        [case, dtype, kernel.rpartition(".")[2], *(_shown(by_place.get((case, dtype, kernel, arch))) for arch in archs)]
        for case, dtype, kernel in names
    ]
    head = ["case", "dtype", "kernel", *(f"sm_{arch}" for arch in archs)]
    spilling = sum(row.taken.spills > 0 for row in rows)
    versions = ", ".join(sorted({row.triton for row in rows}))
    told = f"{len(rows)} kernels compiled by Triton {versions}; {spilling} of them spill in the walk over the halo."
    return "\n".join([HEAD, told, "", *markdown_table(head, lines)]) + "\n"


def _shown(taken: Resources | None) -> str:
    if taken is None:
        return "not run"
    shared = f"{taken.shared / 1024:.0f} KiB"
    return f"{taken.registers}, {taken.spills}, {shared}, {taken.programs_per_sm} × {taken.warps}"


HEAD = f"""# What the GPU kernels take

<!-- written by `python -m benchmarks gpu-kernels` from results/{RECORD} -->

Every Triton kernel at the shapes of the networks' stages, compiled without a GPU; nothing here was timed. A cell has
the registers of a thread, the loads and stores of spilled registers between the first product of the tensor cores and
the last, the shared memory of a program, and how many programs a multiprocessor holds × their warps.
"""
