"""The optional CPU library ``convattn/_native/libconvattn.so``, compiled from ``csrc/`` at installation."""

from __future__ import annotations

import ctypes
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import torch  # before the library: its OpenMP calls bind to the runtime that torch has loaded

ABI_VERSION = 8
"""``CONVATTN_ABI_VERSION`` of ``csrc/convattn.h``."""

FOLDER = Path(__file__).parent.parent / "_native"
LIBRARY = "libconvattn.so"
RECORD = "build.json"

_REBUILD = (
    "run `make native` in a checkout, else `pip install --force-reinstall --no-deps --no-cache-dir .` in the sources"
)
_INSTALL = f"install GCC 12 or newer, then {_REBUILD}"


@dataclass(frozen=True)
class BuildRecord:
    """What the build wrote down.

    Args:
        built: whether there is a library.
        reason: why there is none, in the first line; more of what the compiler wrote in the next.
        compiler: the first line of what the compiler says of itself.
        isas: the instruction sets it was compiled for, best first.
        no_runtimes: why there are no operators for other runtimes; empty where there are.
    """

    built: bool
    reason: str = ""
    compiler: str = ""
    isas: tuple[str, ...] = ()
    no_runtimes: str = ""


@dataclass(frozen=True)
class Loaded:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    reasons: tuple[str, ...] = ()


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: native code is off here; the message gives the reasons.
    """
    loaded = _load_once()
    if loaded.library is None:
        raise RuntimeError(f"convattn's native CPU library is off: {'; '.join(loaded.reasons)}")
    return loaded.library


def reasons() -> list[str]:
    """Why native code is off on this machine; empty when it is on."""
    return list(_load_once().reasons)


def instruction_set() -> str:
    """The instruction set that runs here, such as ``"avx512_bf16"``, ``"avx2"`` or ``"baseline"``.

    Raises:
        RuntimeError: native code is off.
    """
    name: bytes = library().convattn_isa()
    return name.decode()


def threads() -> int:
    """How many threads a kernel uses: as many as torch."""
    return torch.get_num_threads()


def build_record(folder: Path = FOLDER) -> BuildRecord | None:
    """What the build wrote down; None where none has run."""
    try:
        found = json.loads((folder / RECORD).read_text())
        return BuildRecord(
            bool(found["built"]),
            str(found["reason"]),
            str(found["compiler"]),
            tuple(map(str, found["isas"])),
            str(found.get("no_runtimes", "they were not built")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(folder: Path) -> Loaded:
    """The library of a folder; never raises."""
    path = folder / LIBRARY
    if not path.is_file():
        record = build_record(folder)
        if record is None:
            return Loaded(None, (f"the library was never built ({path.name} is missing): {_INSTALL}",))
        if not record.built:
            reason = (record.reason.splitlines() or ["no reason given"])[0]
            return Loaded(None, (f"the library was not built: {reason}; to have it, {_INSTALL}",))
        return Loaded(None, (f"{path.name} was built and is gone: {_REBUILD}",))
    try:
        found = ctypes.CDLL(str(path))
        version: int = found.convattn_abi_version()
        found.convattn_isa.restype = ctypes.c_char_p
    except OSError as error:
        return Loaded(None, (f"{path.name} cannot be loaded: {_explained(str(error))}",))
    except AttributeError as error:
        return Loaded(None, (f"{path.name} is not convattn's library ({error}): {_REBUILD}",))
    if version != ABI_VERSION:
        return Loaded(None, (f"{path.name} has ABI version {version}, this convattn needs {ABI_VERSION}: {_REBUILD}",))
    return Loaded(found)


def _explained(error: str) -> str:
    if "undefined symbol: GOMP_" in error or "undefined symbol: omp_" in error:
        return f"{error}; this torch has no GNU OpenMP runtime to share: install torch from pypi.org or conda-forge"
    if "undefined symbol: __kmpc_" in error:
        return f"{error}; clang built it for a runtime that this torch does not use: with CXX=g++, {_REBUILD}"
    return f"{error}; {_REBUILD}"


_lock = threading.Lock()
_loaded: Loaded | None = None


def _load_once() -> Loaded:
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = load(FOLDER)
    return _loaded
