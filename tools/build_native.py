#!/usr/bin/env python3
"""Compiles ``csrc/`` into the optional CPU library, ``convattn/_native/libconvattn.so``; needs Python and a compiler.

``setup.py`` calls it for every installation, ``make native`` for this checkout. Beside the library it leaves
``build.json``, which says what was built, or why nothing was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

LIBRARY = "libconvattn.so"
RUNTIMES_LIBRARY = "libconvattn_runtimes.so"
RECORD = "build.json"

FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    *("-ffp-contract=fast", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes"),
)
# Without -fopenmp: a second OpenMP runtime in the process slows both down manifold, so the library names none, and
# its GOMP_* calls bind to the one that torch has loaded.
LINK_FLAGS = ("-shared", "-Wl,--as-needed")
# Any program loads this one: nothing may be left to find there. GOMP_* calls: csrc/runtime_threads.cpp.
RUNTIMES_LINK_FLAGS = (*LINK_FLAGS, "-Wl,-Bsymbolic", "-Wl,-z,defs")
# GCC takes hours over these kernels with every check inline: AddressSanitizer's are calls here, and the checks of every
# pointer for null and alignment are left out. Every piece of the kernels' working memory ends before a page that stops
# them (csrc/guarded_scratch.h).
SANITIZE_FLAGS = (
    "-DCONVATTN_GUARD",
    *("-O1", "-g", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize=null,alignment,vptr,object-size"),
    *("-fno-sanitize-recover=undefined", "-fno-sanitize-address-use-after-scope"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
)

AVX512_FLAGS = (
    *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mavx2", "-mf16c"),
    "-mprefer-vector-width=512",
    # GCC 12 warns of its own _mm512_undefined_ps (bug 105593)
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
ISA_FLAGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512_bf16": (*AVX512_FLAGS, "-mavx512bf16"),
        "avx512": AVX512_FLAGS,
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "baseline": (),
    },
    # NEON is the baseline. SVE of 128 bits, which most processors have, is no wider.
    "aarch64": {"sve256": ("-march=armv8.2-a+sve", "-msve-vector-bits=256"), "baseline": ()},
}
"""By processor, best first; others have the baseline alone."""

OWN_SOURCES: Mapping[str, str] = {"avx512_bf16": "avx512_bf16_*.cpp"}
"""Instruction sets that differ from the next one in few kernels: the files that hold those."""

# The first versions with vector_size types in C++ and __builtin_shufflevector.
OLDEST = {"GCC": 12, "clang": 16}
QUOTED_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
MESSAGE_LINES = 12


class BuildError(Exception):
    """The library cannot be built here; the message says why."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how to call it, what it says it is, and the processor that it compiles for."""

    command: tuple[str, ...]
    version: str
    processor: str

    @property
    def isa_flags(self) -> Mapping[str, tuple[str, ...]]:
        """The instruction sets to compile for, best first, with the flags of each."""
        return ISA_FLAGS.get(self.processor, {"baseline": ()})

    @property
    def isas(self) -> tuple[str, ...]:
        """The instruction sets to compile for, best first."""
        return tuple(self.isa_flags)


@dataclass(frozen=True)
class Record:
    """What ``build.json`` holds."""

    built: bool
    reason: str = ""
    compiler: str = ""
    isas: tuple[str, ...] = ()
    no_runtimes: str = ""  # why there are no operators for other runtimes


def find_compiler() -> Compiler:
    """The compiler that ``CXX`` names, else the first usable of g++, c++ and clang++.

    Raises:
        BuildError: there is none, or those found are too old; the message names each and why not.
    """
    if platform.system() != "Linux":
        raise BuildError(f"the native library is built on Linux only; this is {platform.system()}")
    named = os.environ.get("CXX", "").strip()
    refused = []
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        try:
            return inspect(candidate)
        except BuildError as error:
            refused.append(str(error))
    origin = " (named by CXX)" if named else ""
    raise BuildError(f"no usable C++ compiler{origin}: {'; '.join(refused)}")


def inspect(candidate: str) -> Compiler:
    """The compiler behind a command line such as ``ccache g++``.

    Raises:
        BuildError: it does not run, or is too old.
    """
    command = tuple(shlex.split(candidate))
    if shutil.which(command[0]) is None:
        raise BuildError(f"{command[0]} not found")
    macros = dict(re.findall(r"^#define (\w+) (.*)$", run([*command, "-dM", "-E", "-x", "c++", os.devnull]), re.M))
    name, major = ("clang", "__clang_major__") if "__clang_major__" in macros else ("GCC", "__GNUC__")
    version = macros.get(major, "0")
    if int(version) < OLDEST[name]:
        raise BuildError(f"{candidate} is {name} {version}, older than GCC {OLDEST['GCC']} or clang {OLDEST['clang']}")
    first_line = run([*command, "--version"]).splitlines()[0]
    processor = next((name for name in ISA_FLAGS if f"__{name}__" in macros), "another")
    return Compiler(command, first_line.strip(), processor)


def run(command: list[str]) -> str:
    """What a command writes; its warnings are passed on.

    Raises:
        BuildError: it cannot be started or fails; the message's first line has the first error, the next lines hold
            the beginning of all that it wrote.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildError("\n".join([f"{command[0]} failed: {first.strip()}", *lines[:MESSAGE_LINES]]))
    sys.stderr.write(done.stderr)
    return done.stdout


@dataclass(frozen=True)
class Unit:
    """One source file compiled once, for one instruction set or, as the dispatcher, for none."""

    source: Path
    object: Path
    compiler: Compiler
    flags: tuple[str, ...]

    def key(self) -> str:
        """A digest of all that the object depends on: compiler, flags, the source and the headers it includes."""
        digest = hashlib.sha256("\0".join([*self.compiler.command, self.compiler.version, *self.flags]).encode())
        for path in with_headers(self.source):
            digest.update(path.read_bytes() + b"\0")
        return digest.hexdigest()

    def compile(self) -> None:
        """Compile where something it depends on has changed."""
        stamp, key = self.object.with_suffix(".key"), self.key()
        if self.object.is_file() and stamp.is_file() and stamp.read_text() == key:
            return
        fresh = self.object.with_suffix(f".{os.getpid()}.o")
        run([*self.compiler.command, *self.flags, "-c", str(self.source), "-o", str(fresh)])
        stamp.unlink(missing_ok=True)
        fresh.replace(self.object)
        stamp.write_text(key)


def with_headers(source: Path) -> list[Path]:
    """A source file and the headers beside it that it includes, directly or not."""
    found = [source]
    for path in found:
        for name in QUOTED_INCLUDE.findall(path.read_text()):
            header = path.parent / name
            if header.is_file() and header not in found:
                found.append(header)
    return found


def units(source: Path, objects: Path, compiler: Compiler, extra: tuple[str, ...]) -> list[Unit]:
    """What there is to compile, the longest first."""
    if not list(source.glob("kernels_*.cpp")):
        raise BuildError(f"no kernels_*.cpp in {source}")
    common = (*FLAGS, *extra)
    if compiler.processor not in ISA_FLAGS:
        common += ("-DCONVATTN_ONLY_BASELINE",)
    found = [
        Unit(path, objects / f"{path.stem}-{isa}.o", compiler, (*common, *flags, f"-DCONVATTN_ISA={isa}"))
        for isa, flags in compiler.isa_flags.items()
        for path in sorted(source.glob(OWN_SOURCES.get(isa, "kernels_*.cpp")))
    ]
    dispatch = source / "dispatch.cpp"
    return [*found, Unit(dispatch, objects / "dispatch.o", compiler, (*common, "-fvisibility=default"))]


def build_library(
    source: Path, out: Path, objects: Path, compiler: Compiler, extra: tuple[str, ...] = ()
) -> list[Path]:
    """Compile ``source`` into ``out / LIBRARY``, keeping the objects for next time; they are returned.

    Raises:
        BuildError: a compilation that fails.
    """
    objects.mkdir(parents=True, exist_ok=True)
    todo = units(source, objects, compiler, extra)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Unit.compile, todo))
    compiled = [unit.object for unit in todo]
    link(compiler, (*LINK_FLAGS, *extra), compiled, out / LIBRARY)
    return compiled


def build_runtimes_library(source: Path, out: Path, compiler: Compiler, kernels: list[Path]) -> str:
    """Link the kernels once more, as operators of other runtimes; why that cannot be, or an empty string."""
    path = out / RUNTIMES_LIBRARY
    try:
        if "clang" in compiler.version:
            raise BuildError("its loops call GCC's OpenMP runtime, and clang's another; build with CXX=g++")
        found = sorted(source.glob("runtime_*.cpp"))
        if not found:
            raise BuildError(f"no runtime_*.cpp in {source}")
        todo = [Unit(one, kernels[0].with_name(f"{one.stem}.o"), compiler, FLAGS) for one in found]
        for unit in todo:
            unit.compile()
        link(compiler, RUNTIMES_LINK_FLAGS, [*(unit.object for unit in todo), *kernels], path)
    except BuildError as error:
        path.unlink(missing_ok=True)
        return str(error)
    return ""


def link(compiler: Compiler, flags: tuple[str, ...], objects: list[Path], path: Path) -> None:
    """Make a library of objects.

    Raises:
        BuildError: that fails.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    run([*compiler.command, *flags, *map(str, objects), "-o", str(fresh)])
    fresh.replace(path)  # a new file: processes that run on the old one keep it


def build(source: Path, out: Path, objects: Path, sanitize: bool = False) -> Record:
    """Build the libraries into ``out`` if this machine can, and write down there what came of it.

    A build that fails takes an older library away: it would no longer be what the sources say.
    """
    out.mkdir(parents=True, exist_ok=True)
    compiler = None
    try:
        compiler = find_compiler()
        kernels = build_library(source, out, objects, compiler, SANITIZE_FLAGS if sanitize else ())
        refused = "with sanitizers" if sanitize else build_runtimes_library(source, out, compiler, kernels)
        record = Record(True, "", compiler.version, compiler.isas, refused)
    except (BuildError, OSError) as error:
        for name in (LIBRARY, RUNTIMES_LIBRARY):
            (out / name).unlink(missing_ok=True)
        record = Record(False, str(error), compiler.version if compiler else "", (), "no kernels")
    fresh = out / f".{RECORD}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(record), indent=2) + "\n")
    fresh.replace(out / RECORD)
    return record


def main() -> int:
    """Build this checkout's library; 1 where that fails."""
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=root / "csrc", help="default: csrc")
    parser.add_argument("--out", type=Path, default=root / "src/convattn/_native", help="default: src/convattn/_native")
    parser.add_argument("--objects", type=Path, default=root / "build/native", help="default: build/native")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    options = parser.parse_args()
    record = build(options.source, options.out, options.objects, options.sanitize)
    if not record.built:
        print(f"convattn: the native library was not built: {record.reason}", file=sys.stderr)
        return 1
    print(f"{options.out / LIBRARY}: {', '.join(record.isas)}, by {record.compiler}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
