"""``convattn info``."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.markup import escape
from rich.table import Table

import convattn
from convattn.cli._options import AsJson
from convattn.cli._tables import make_console, print_table

PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow", "safetensors", "triton")


def info(as_json: AsJson = False) -> None:
    """Show versions, devices, and which backends each operator can use here.

    [bold]Examples[/]

      convattn info

      convattn info --json                       for a bug report or a script
    """
    found = collect()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = make_console()
    for title in ("versions", "machine", "native"):
        print_table(console, _pairs(title, found[title]))
    print_table(console, _backends(found["ops"]))


def collect() -> dict[str, Any]:
    """Return what the command shows, as plain values."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "native": _native_library(),
        "ops": convattn.ops.backends(),
    }


def _versions() -> dict[str, str]:
    found = {"convattn": convattn.__version__, "python": platform.python_version()}
    return found | {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str:
    """Return a package's version.

    Example:
        >>> version_of("no-such-package")
        'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": platform.platform(),
        "devices": _devices(),
        "built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def _native_library() -> dict[str, Any]:
    """Return the state of the native CPU library; where it is off, why, and what the compiler said."""
    from convattn.ops import _native

    reasons = _native.reasons()
    found: dict[str, Any] = {"state": f"off: {'; '.join(reasons)}" if reasons else "available"}
    if not reasons:
        found |= {"library": _native.LIBRARY, "instruction set": _native.instruction_set()}
        found["threads"] = _native.threads()
    record = _native.build_record()
    if record is not None and record.built:
        found["compiled for"] = list(record.isas)
    if record is not None and record.compiler:
        found["compiler"] = record.compiler
    if record is not None and "\n" in record.reason:
        found["compiler's message"] = record.reason.partition("\n")[2]
    return found


def _devices() -> list[str]:
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found.append(f"cuda:{index} {properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _pairs(title: str, values: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", show_header=False)
    for name, value in values.items():
        table.add_row(name, escape("; ".join(value) if isinstance(value, list) else str(value)))
    return table


def _backends(ops: dict[str, dict[str, list[str]]]) -> Table:
    """Return a row per operator and backend: available, or why not."""
    table = Table(box=None, pad_edge=False, title="operators", title_justify="left", title_style="bold")
    for name in ("operator", "backend", ""):
        table.add_column(name, overflow="fold")
    for op, backends in ops.items():
        for place, (backend, reasons) in enumerate(backends.items()):
            state = f"[yellow]off:[/] {escape('; '.join(reasons))}" if reasons else "[green]available[/]"
            table.add_row(op if place == 0 else "", backend, state)
    return table
