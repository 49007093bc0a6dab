"""The part of the build that ``pyproject.toml`` cannot say: the optional native CPU library of ``csrc/``.

A machine that cannot compile it gets everything else; ``convattn info`` then says why. With
``CONVATTN_REQUIRE_NATIVE=1`` in the environment the build fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PACKAGE_FOLDER = Path("convattn", "_native")


def load_builder():
    """``tools/build_native.py`` as a module; ``tools`` is no package, and an isolated build has no path to it."""
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "tools" / "build_native.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(Command):
    """Compiles ``csrc/`` into the build tree, or into ``src/`` for an editable installation."""

    description = "compile the native CPU library (optional)"
    user_options = ()
    editable_mode = False

    def initialize_options(self):
        """Have setuptools fill in where the build tree is."""
        self.build_lib = None

    def finalize_options(self):
        """Take the build tree from ``build_py``, whose files the library joins."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def out(self) -> Path:
        """Where the library goes."""
        return (ROOT / "src" if self.editable_mode else Path(self.build_lib)) / PACKAGE_FOLDER

    def run(self):
        """Compile.

        Raises:
            CompileError: it failed, and ``CONVATTN_REQUIRE_NATIVE=1``.
        """
        record = load_builder().build(ROOT / "csrc", self.out, ROOT / "build" / "native")
        if record.built:
            return
        message = f"the native CPU library was not built: {record.reason}"
        if os.environ.get("CONVATTN_REQUIRE_NATIVE") == "1":
            raise CompileError(message)
        self.warn(f"{message}\nconvattn works without it, slower on the CPU: see `convattn info`")

    def get_source_files(self):
        """What a source distribution must hold for this command."""
        sources = sorted(path for path in (ROOT / "csrc").iterdir() if path.suffix in {".h", ".cpp"})
        return [str(path.relative_to(ROOT)) for path in (*sources, ROOT / "tools" / "build_native.py")]

    def get_outputs(self):
        """What an installation takes from the build tree."""
        return [str(path) for path in sorted(self.out.glob("*")) if not self.editable_mode]

    def get_output_mapping(self):
        """No output has a source file that an editable installation could link to."""
        return {}


class Build(build):
    """The usual build, and the library."""

    sub_commands = (*build.sub_commands, ("build_native", None))


class PlatformWheel(bdist_wheel):
    """One wheel per platform serves every Python: the library has a plain C interface and no Python in it."""

    def get_tag(self):
        """``py3-none-<platform>``."""
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    """A distribution that belongs on a platform, though no extension module says so."""

    def has_ext_modules(self):
        """Have the files installed where compiled code goes."""
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": PlatformWheel},
)
