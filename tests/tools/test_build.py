"""The build of the native CPU library: what it leaves with a compiler, without one, and with one that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import build_native

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native library is built on Linux only")

HEADER = """#pragma once
#define CONVATTN_JOIN_(a, b) a##_##b
#define CONVATTN_JOIN(a, b) CONVATTN_JOIN_(a, b)
"""
KERNEL = """#include "tiny.h"
extern "C" int CONVATTN_JOIN(answer, CONVATTN_ISA)() { return ANSWER; }
"""
OPERATORS = """extern "C" __attribute__((visibility("default"))) int RegisterCustomOps() { return 0; }
"""
DISPATCH = """extern "C" int answer_baseline();
extern "C" int answer() { return answer_baseline(); }
"""


class Project:
    """Sources that compile in no time, and where their library goes."""

    def __init__(self, root: Path) -> None:
        self.source, self.out, self.objects = root / "csrc", root / "out", root / "objects"
        self.source.mkdir()
        self.write("tiny.h", HEADER + "#define ANSWER 42\n")
        self.write("kernels_tiny.cpp", KERNEL)
        self.write("dispatch.cpp", DISPATCH)
        self.write("runtime_tiny.cpp", OPERATORS)

    def write(self, name: str, text: str) -> None:
        (self.source / name).write_text(text)

    def build(self):
        return build_native.build(self.source, self.out, self.objects)

    @property
    def library(self) -> Path:
        return self.out / "libconvattn.so"

    @property
    def record(self) -> dict:
        return json.loads((self.out / "build.json").read_text())

    def compiled(self) -> dict[str, int]:
        """When each object was compiled."""
        return {path.name: path.stat().st_mtime_ns for path in self.objects.glob("*.o")}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def compiler():
    try:
        return build_native.find_compiler()
    except build_native.BuildError as error:
        pytest.skip(str(error))


def pretend_compiler(path: Path, body: str) -> Path:
    """A program that stands where a compiler does."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def answer(library: Path) -> int:
    """What the library says, in a process of its own: one that is loaded already would be found again."""
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).answer())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


class TestWithACompiler:
    def test_library_and_record(self, project: Project, compiler) -> None:
        record = project.build()
        assert record.built
        assert answer(project.library) == 42
        of_clang = "clang" in compiler.version
        assert ("CXX=g++" in project.record["no_runtimes"]) == of_clang
        assert project.record | {"no_runtimes": ""} == {
            "no_runtimes": "",
            "built": True,
            "reason": "",
            "compiler": compiler.version,
            "isas": list(build_native.ISA_FLAGS.get(compiler.processor, ["baseline"])),
        }
        libraries = ["libconvattn.so", *([] if of_clang else ["libconvattn_runtimes.so"])]
        assert sorted(path.name for path in project.out.iterdir()) == ["build.json", *libraries]

    def test_only_what_changed_is_compiled_again(self, project: Project, compiler) -> None:
        project.write("kernels_other.cpp", "")
        project.build()
        first = project.compiled()
        project.build()
        assert project.compiled() == first

        project.write("tiny.h", HEADER + "#define ANSWER 43\n")
        project.build()
        again = project.compiled()
        assert {name for name in first if again[name] != first[name]} == {
            f"kernels_tiny-{isa}.o" for isa in compiler.isas if isa not in build_native.OWN_SOURCES
        }
        assert answer(project.library) == 43

    def test_an_instruction_set_with_files_of_its_own_compiles_those_alone(self, project: Project, compiler) -> None:
        if compiler.processor != "x86_64":
            pytest.skip("x86-64 has one")
        project.write("avx512_bf16_tiny.cpp", KERNEL)
        project.build()
        assert {name for name in project.compiled() if "bf16" in name} == {"avx512_bf16_tiny-avx512_bf16.o"}

    def test_other_flags_compile_again(self, project: Project, compiler, monkeypatch: pytest.MonkeyPatch) -> None:
        project.build()
        first = project.compiled()
        monkeypatch.setattr(build_native, "FLAGS", (*build_native.FLAGS, "-DOTHER"))
        project.build()
        assert all(project.compiled()[name] != when for name, when in first.items())

    def test_kernels_are_hidden_and_the_dispatcher_is_not(self, project: Project, compiler) -> None:
        import ctypes

        project.build()
        found = ctypes.CDLL(str(project.library))
        assert hasattr(found, "answer")
        assert not hasattr(found, "answer_baseline")

    def test_a_compile_error_is_recorded_and_takes_the_old_library_away(self, project: Project, compiler) -> None:
        project.build()
        project.write("kernels_tiny.cpp", KERNEL + "int broken = no_such_name;\n")
        record = project.build()
        assert not record.built
        assert not project.library.exists()
        first, *rest = project.record["reason"].splitlines()
        assert "failed: " in first
        assert "no_such_name" in first
        assert rest
        assert project.record["compiler"] == compiler.version

        project.write("kernels_tiny.cpp", KERNEL)
        assert project.build().built

    @pytest.mark.parametrize("missing", ["kernels_tiny.cpp", "dispatch.cpp"])
    def test_missing_sources_are_named(self, project: Project, compiler, missing: str) -> None:
        (project.source / missing).unlink()
        assert missing[:7] in project.build().reason

    def test_it_runs_as_a_command(self, project: Project, compiler) -> None:
        places = [f"--source={project.source}", f"--out={project.out}", f"--objects={project.objects}"]
        command = [sys.executable, str(ROOT / "tools" / "build_native.py"), *places]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "baseline, by " in done.stdout
        refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CXX": "no-such-c++"})
        assert refused.returncode == 1
        assert "no-such-c++ not found" in refused.stderr


class TestWithoutACompiler:
    def test_the_one_named_is_missing(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "/nonexistent/g++ -m64")
        assert not project.build().built
        assert project.record["reason"] == "no usable C++ compiler (named by CXX): /nonexistent/g++ not found"

    def test_none_is_there(self, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert project.build().reason == "no usable C++ compiler: g++ not found; c++ not found; clang++ not found"

    @pytest.mark.parametrize(
        ("macros", "said"),
        [
            ("#define __GNUC__ 11", "is GCC 11, older than GCC 12 or clang 16"),
            ("#define __GNUC__ 4\n#define __clang_major__ 14", "is clang 14, older than GCC 12 or clang 16"),
        ],
        ids=["GCC", "clang"],
    )
    def test_an_old_one_is_refused(
        self, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, macros: str, said: str
    ) -> None:
        old = pretend_compiler(tmp_path / "c++", f"cat <<'EOF'\n{macros}\nEOF")
        monkeypatch.setenv("CXX", str(old))
        assert said in project.build().reason

    def test_the_next_candidate_is_tried(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        macros = "#define __GNUC__ 13\n#define __aarch64__ 1"
        (tmp_path / "bin").mkdir()
        for tool in ("cat", "sh"):
            (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
        pretend_compiler(tmp_path / "bin" / "g++", "echo the licence is not accepted >&2; exit 69")
        pretend_compiler(tmp_path / "bin" / "c++", f"cat <<'EOF'\n{macros}\nEOF")
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        found = build_native.find_compiler()
        assert (found.command, found.isas) == (("c++",), ("sve256", "baseline"))

        (tmp_path / "bin" / "c++").unlink()
        with pytest.raises(build_native.BuildError, match="the licence is not accepted; c\\+\\+ not found"):
            build_native.find_compiler()

    def test_arm_compiles_for_wide_vectors_too(self, tmp_path: Path) -> None:
        project = Project(tmp_path)
        arm = build_native.Compiler(("c++",), "a compiler", "aarch64")
        wide, neon, dispatch = build_native.units(project.source, project.objects, arm, ())
        assert {"-DCONVATTN_ISA=sve256", "-msve-vector-bits=256"} <= set(wide.flags)
        assert "-DCONVATTN_ISA=baseline" in neon.flags
        assert not [flag for flag in neon.flags if flag.startswith("-m")]
        assert "-DCONVATTN_ONLY_BASELINE" not in dispatch.flags

    def test_other_processors_compile_the_baseline_alone(self, tmp_path: Path) -> None:
        project = Project(tmp_path)
        other = build_native.Compiler(("c++",), "a compiler", "another")
        kernel, dispatch = build_native.units(project.source, project.objects, other, ())
        assert {"-DCONVATTN_ISA=baseline", "-DCONVATTN_ONLY_BASELINE"} <= set(kernel.flags)
        assert not [flag for flag in kernel.flags if flag.startswith("-m")]
        assert "-DCONVATTN_ONLY_BASELINE" in dispatch.flags

    def test_another_system_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build_native.platform, "system", lambda: "Windows")
        with pytest.raises(build_native.BuildError, match="on Linux only; this is Windows"):
            build_native.find_compiler()


class TestSetup:
    """``setup.py`` in a checkout of its own, as pip calls it, less pip."""

    @pytest.fixture
    def checkout(self, project: Project, tmp_path: Path) -> Path:
        pytest.importorskip("setuptools", minversion="77")
        for path in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / path, tmp_path)
        (tmp_path / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "build_native.py", tmp_path / "tools")
        package = tmp_path / "src" / "convattn"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        shutil.copy(ROOT / "src" / "convattn_command.py", tmp_path / "src")
        return tmp_path

    def run(self, checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", *arguments],
            cwd=checkout,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    def test_one_wheel_per_platform_with_the_library(self, checkout: Path, compiler) -> None:
        import zipfile

        stale = checkout / "src" / "convattn" / "_native"
        stale.mkdir()
        (stale / "libconvattn.so").write_text("of another time")
        assert self.run(checkout, "bdist_wheel").returncode == 0
        (wheel,) = (checkout / "dist").glob("*.whl")
        assert "-py3-none-linux_" in wheel.name
        with zipfile.ZipFile(wheel) as opened:
            names = [name for name in opened.namelist() if "dist-info" not in name]
            assert sorted(names) == [
                "convattn/__init__.py",
                "convattn/_native/build.json",
                "convattn/_native/libconvattn.so",
                "convattn/_native/libconvattn_runtimes.so",
                "convattn_command.py",
            ]
            assert opened.read("convattn/_native/libconvattn.so")[:4] == b"\x7fELF"

    def test_a_source_distribution_can_compile(self, checkout: Path) -> None:
        import tarfile

        (checkout / "src" / "convattn" / "_native").mkdir()
        (checkout / "src" / "convattn" / "_native" / "libconvattn.so").touch()
        assert self.run(checkout, "sdist").returncode == 0
        (sdist,) = (checkout / "dist").glob("*.tar.gz")
        with tarfile.open(sdist) as opened:
            names = {name.partition("/")[2] for name in opened.getnames()}
        assert {"setup.py", "tools/build_native.py", "csrc/dispatch.cpp", "csrc/tiny.h"} <= names
        assert not [name for name in names if "_native/" in name]

    def test_no_compiler_is_no_failure(self, checkout: Path) -> None:
        done = self.run(checkout, "build", CXX="/nonexistent")
        assert done.returncode == 0
        assert "the native CPU library was not built: no usable C++ compiler" in done.stderr
        (record,) = checkout.glob("build/lib*/convattn/_native/build.json")
        assert "/nonexistent not found" in json.loads(record.read_text())["reason"]

    def test_unless_the_library_is_required(self, checkout: Path) -> None:
        done = self.run(checkout, "build", CXX="/nonexistent", CONVATTN_REQUIRE_NATIVE="1")
        assert done.returncode != 0
        assert "/nonexistent not found" in done.stderr
