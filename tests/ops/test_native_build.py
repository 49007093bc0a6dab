"""The loader of the native CPU library: what it says where there is none, and that it loads what the build made."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from convattn.ops import _native

ROOT = Path(__file__).parents[2]

needs_library = pytest.mark.skipif(bool(_native.reasons()), reason="; ".join(_native.reasons()))


def record(folder: Path, **values: object) -> None:
    """What a build leaves in ``build.json``."""
    found = {"built": False, "reason": "", "compiler": "", "isas": []} | values
    (folder / "build.json").write_text(json.dumps(found))


def compile_library(folder: Path, source: str) -> None:
    """A library of the right name from a few lines of C."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (folder / "tiny.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "tiny.c", "-o", "libconvattn.so"], cwd=folder, check=True)


def only_reason(folder: Path) -> str:
    loaded = _native.load(folder)
    assert loaded.library is None
    (reason,) = loaded.reasons
    assert "make native" in reason or "install" in reason
    return reason


def dynamic_strings(path: Path, tag: int) -> list[str]:
    """The strings under a tag of a 64-bit ELF file's dynamic section: its ``DT_NEEDED`` where the tag is 1."""
    image = path.read_bytes()
    assert image[:5] == b"\x7fELF\x02"
    offset, size, count = struct.unpack_from("<Q", image, 40)[0], *struct.unpack_from("<HH", image, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, offset + index * size) for index in range(count)]
    dynamic = next(section for section in sections if section[1] == 6)
    strings = sections[dynamic[6]][4]
    entries = struct.iter_unpack("<qQ", image[dynamic[4] : dynamic[4] + dynamic[5]])
    places = [strings + value for name, value in entries if name == tag]
    return [image[place : image.index(b"\0", place)].decode() for place in places]


class TestWhyItIsOff:
    def test_never_built(self, tmp_path: Path) -> None:
        assert only_reason(tmp_path).startswith("the library was never built (libconvattn.so is missing): install GCC")

    def test_not_built(self, tmp_path: Path) -> None:
        record(tmp_path, reason="g++ failed: a.cpp:1: error: no such thing\nIn file included from here\nand much more")
        reason = only_reason(tmp_path)
        assert reason.startswith("the library was not built: g++ failed: a.cpp:1: error: no such thing; to have it, ")
        assert "\n" not in reason

    def test_built_and_gone(self, tmp_path: Path) -> None:
        record(tmp_path, built=True)
        assert "libconvattn.so was built and is gone" in only_reason(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"built": false, "reason": ""'])
    def test_a_broken_record_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "build.json").write_text(text)
        assert _native.build_record(tmp_path) is None
        assert "never built" in only_reason(tmp_path)

    def test_no_library_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "libconvattn.so").write_text("a text")
        assert "libconvattn.so cannot be loaded: " in only_reason(tmp_path)

    def test_another_library(self, tmp_path: Path) -> None:
        compile_library(tmp_path, "int other(void) { return 1; }")
        assert "is not convattn's library" in only_reason(tmp_path)

    def test_another_abi(self, tmp_path: Path) -> None:
        version = _native.ABI_VERSION + 1
        source = (
            f'int convattn_abi_version(void) {{ return {version}; }} const char* convattn_isa(void) {{ return ""; }}'
        )
        compile_library(tmp_path, source)
        assert f"has ABI version {version}, this convattn needs {_native.ABI_VERSION}" in only_reason(tmp_path)

    @pytest.mark.parametrize(
        ("symbol", "advice"),
        [("GOMP_no_such_call", "no GNU OpenMP runtime"), ("__kmpc_no_such_call", "CXX=g++"), ("other", "make native")],
    )
    def test_a_symbol_that_torch_does_not_bring(self, tmp_path: Path, symbol: str, advice: str) -> None:
        compile_library(tmp_path, f"extern int {symbol}(void); int call(void) {{ return {symbol}(); }}")
        reason = only_reason(tmp_path)
        assert f"undefined symbol: {symbol}" in reason
        assert advice in reason

    def test_the_error_of_a_call_gives_the_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_native, "_loaded", _native.load(tmp_path))
        with pytest.raises(RuntimeError, match="native CPU library is off: the library was never built"):
            _native.library()
        with pytest.raises(RuntimeError, match="install GCC"):
            _native.instruction_set()
        assert len(_native.reasons()) == 1


@needs_library
class TestTheLibrary:
    def test_it_is_loaded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loads = []
        load = _native.load
        monkeypatch.setattr(_native, "_loaded", None)
        monkeypatch.setattr(_native, "load", lambda folder: (loads.append(folder), load(folder))[1])
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: id(_native.library()), range(64)))
        assert (len(loads), len(found)) == (1, 1)

    def test_threads_are_those_of_torch(self) -> None:
        assert _native.threads() == torch.get_num_threads()

    def test_no_openmp_runtime_of_its_own(self) -> None:
        needed = dynamic_strings(_native.FOLDER / _native.LIBRARY, tag=1)
        assert any(name.startswith("libc.so") for name in needed)
        assert not [name for name in needed if re.search("omp", name)]

    def test_it_brings_no_openmp_runtime_into_the_process(self) -> None:
        """In a process of its own: other packages, scikit-learn among them, carry one."""
        code = (
            "import re, torch\n"
            "from convattn.ops import _native\n"
            "_native.library()\n"
            "lines = open('/proc/self/maps').read().splitlines()\n"
            "mapped = {line.split(maxsplit=5)[-1] for line in lines}\n"
            "print(len([path for path in mapped if re.search(r'/lib(g|i|)omp[-.\\w]*[.]so', path)]))\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert ran.stdout.strip() == "1", ran.stderr

    def test_the_version_is_that_of_the_header(self) -> None:
        header = ROOT / "csrc" / "convattn.h"
        assert f"#define CONVATTN_ABI_VERSION {_native.ABI_VERSION}\n" in header.read_text()

    @pytest.mark.parametrize("asked", ["avx512_bf16", "avx512", "avx2", "baseline", "sse9"])
    def test_the_environment_only_lowers_the_instruction_set(
        self, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def isa(name: str) -> str:
            """What a fresh copy picks: it does so once, as it is loaded."""
            (tmp_path / name).mkdir()
            shutil.copy(_native.FOLDER / _native.LIBRARY, tmp_path / name)
            monkeypatch.setattr(_native, "_loaded", _native.load(tmp_path / name))
            return _native.instruction_set()

        order = ["avx512_bf16", "avx512", "avx2", "baseline"]
        monkeypatch.delenv("CONVATTN_CPU_ISA", raising=False)
        best = isa("best")
        monkeypatch.setenv("CONVATTN_CPU_ISA", asked)
        assert isa("asked") == (max(asked, best, key=order.index) if asked in order else best)
