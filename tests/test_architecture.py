"""The house rules that can be read from the source: which room may import which, and what must not stand where."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm

import convattn  # noqa: F401  (registers the networks)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "convattn"
CHECKOUT = ("benchmarks", "reproduce")
"""Packages beside ``src``: they use the library and are no part of it."""
MODULES = sorted([*PACKAGE.rglob("*.py"), *(path for name in CHECKOUT for path in ROOT.glob(f"{name}/**/*.py"))])
SURFACE = Path(__file__).parent / "api_surface.json"

# ops <- layers <- models <- official, cost <- optimize, explain, detection, segmentation <- export <- convert
# <- ultralytics <- tasks <- cli
CHAIN = (
    {"ops"},
    {"layers"},
    {"models"},
    {"official", "cost"},
    {"optimize", "explain", "detection", "segmentation"},
    {"export"},
    {"convert"},
    {"ultralytics"},
    {"tasks"},
    {"cli"},
)
ANYWHERE = {"errors", "publishing"}
"""Single modules that every room may import."""
# Rooms beside the chain, and what they may import; every room may import itself and what is anywhere.
BESIDE = {
    "errors": set(),
    "_on_import": set(),
    "publishing": {"errors"},
    "data": set(),
    "report": {"data"},
    "benchmarks": {
        "ops",
        "layers",
        "models",
        "convert",
        "official",
        "cost",
        "detection",
        "segmentation",
        "export",
        "data",
        "tasks",
        "cli",
    },
    "reproduce": {
        *("ops", "layers", "models", "convert", "official", "cost", "benchmarks"),
        *("detection", "segmentation", "data", "tasks", "report", "cli"),
    },
}
# The package itself, `import convattn`: it imports the lower rooms, so only these may import it back.
USES_THE_PACKAGE = {*CHECKOUT, "tasks", "cli"}
PRINTING = ("cli", "command", "publish")
"""The room, and the modules of what is beside it, that may print."""


def room_of(module: str) -> str:
    """The room of a dotted module name: ``convattn.ops.attend`` stands in ``ops``, ``convattn`` in ``convattn``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] not in CHECKOUT else parts[0]


def allowed(room: str) -> set[str]:
    """The rooms that a room may import."""
    for rank, rooms in enumerate(CHAIN):
        if room in rooms:
            reach = {room, *ANYWHERE}.union(*CHAIN[:rank])
            if room == "tasks":
                reach |= {"data", "report"}
            elif room == "cli":
                reach |= set(BESIDE) - set(CHECKOUT)
            break
    else:
        if room == "convattn":
            return {"convattn", "_on_import", *ANYWHERE}.union(*CHAIN[:-1])
        if room not in BESIDE:
            pytest.fail(
                f"src/convattn/{room} is a room that the architecture does not know: "
                "add it to CHAIN or BESIDE in tests/test_architecture.py"
            )
        reach = {room, *ANYWHERE} | BESIDE[room]
    return reach | {"convattn"} if room in USES_THE_PACKAGE else reach


def module_name(path: Path) -> str:
    """The dotted name of a file of the package; a package's ``__init__.py`` carries the package's name."""
    root = PACKAGE.parent if path.is_relative_to(PACKAGE) else ROOT
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool, rooms: set[str]) -> Iterator[tuple[int, str]]:
    """Every import of convattn in a file, those inside functions too: its line and the room that it reaches."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("convattn", *CHECKOUT):
                    yield node.lineno, room_of(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) - node.level + is_package]
                base = ".".join([*anchor, base] if base else anchor)
            if base == "convattn":
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                yield from ((node.lineno, name if name in rooms else "convattn") for name in names)
            elif base.startswith("convattn.") or base.split(".")[0] in CHECKOUT:
                yield node.lineno, room_of(base)


def reversed_edges(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a file that run against the direction, each as a sentence."""
    rooms = {*BESIDE, *(room for rank in CHAIN for room in rank)}
    room = room_of(module)
    return [
        f"line {line}: {room} must not import {target} (it may import {', '.join(sorted(allowed(room) - {room}))})"
        for line, target in imports(ast.parse(source), module, is_package, rooms)
        if target not in allowed(room)
    ]


def device_reads(source: str) -> list[str]:
    """Where a file asks which device or environment it runs in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        reads_device = node.attr in {"is_cuda", "is_meta", "is_available", "device_count", "current_device"}
        reads_type = node.attr == "type" and isinstance(node.value, ast.Attribute) and node.value.attr == "device"
        if reads_device or reads_type or text in {"os.environ", "os.getenv"}:
            found.append(f"line {node.lineno}: {text}")
    return found


def printing(source: str) -> list[str]:
    """The calls of ``print`` in a file, docstrings left out."""
    return [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def asserts(source: str) -> list[str]:
    """The ``assert`` statements of a file."""
    return [f"line {node.lineno}" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def mapped(page: str) -> set[str]:
    """The paths that a map names: each line its first word, indented under the folder above it."""
    found, folder = set(), ""
    for line in page.splitlines():
        if line.strip():
            name = line.split()[0]
            folder = folder if line.startswith(" ") else name if name.endswith("/") else ""
            found.add((folder if line.startswith(" ") else "") + name)
    return {path.rstrip("/") for path in found}


def each_module(*, room: str | None = None) -> pytest.MarkDecorator:
    paths = [path for path in MODULES if room in (None, room_of(module_name(path)))]
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


@each_module()
def test_imports_follow_the_direction(path: Path) -> None:
    wrong = reversed_edges(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not wrong, "\n".join([f"{path.relative_to(ROOT)}: move what is needed down, or pass it in.", *wrong])


@each_module(room="ops")
def test_only_dispatch_reads_the_device(path: Path) -> None:
    if path == PACKAGE / "ops" / "_dispatch.py":
        assert device_reads(path.read_text()), "ops/_dispatch.py reads no device: is the rule still about this file?"
        return
    found = device_reads(path.read_text())
    assert not found, f"{path.relative_to(ROOT)}: ask in ops/_dispatch.py and pass the answer in: {'; '.join(found)}"


@each_module()
def test_no_assert_in_the_package(path: Path) -> None:
    found = asserts(path.read_text())
    assert not found, f"{path.relative_to(ROOT)}: raise a ValueError or UserError that says what to do: {found}"


@each_module()
def test_only_the_command_prints(path: Path) -> None:
    if {room_of(module_name(path)), path.stem} & set(PRINTING):
        pytest.skip("the command prints")
    found = printing(path.read_text())
    assert not found, f"{path.relative_to(ROOT)}: return the text and let cli print it: {found}"


def test_the_map_of_the_house_is_complete() -> None:
    """CONTRIBUTING.md names every package, every folder of code and every lone module, and nothing else."""
    house = re.search(r"## The map of the house\n\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert house, "CONTRIBUTING.md has no map"
    private = ("_", "py.typed")
    rooms = {f"src/convattn/{path.name}" for path in PACKAGE.iterdir() if not path.name.startswith(private)}
    folders = {path.parent.name for form in ("*/*.py", "*/*.cpp", "*/*.ipynb", "*/*.md") for path in ROOT.glob(form)}
    folders = {name for name in folders if not name.startswith((".", "build", "dist", "site", "reproduced", "runs"))}
    expected = rooms | folders | {"src/convattn", "src/convattn_command.py", "results"}
    assert mapped(house[1]) == expected - {"src"}


def public_names(where: str) -> list[str]:
    """What a module exports, or under ``"timm"`` the networks of this package in timm's registry."""
    if where == "timm":
        entrypoint = timm.models.model_entrypoint
        return [name for name in timm.list_models() if entrypoint(name).__module__.split(".")[0] == "convattn"]
    return list(importlib.import_module(where).__all__)


def surface_changes(listed: list[str], present: list[str]) -> list[str]:
    """What a person has to do about names that went or came."""
    gone, new = sorted(set(listed) - set(present)), sorted(set(present) - set(listed))
    told = [f"lost {name}: bring it back, or deprecate it in CHANGELOG.md first" for name in gone]
    return told + [f"has a new public {name}: if it is meant, add it to {SURFACE.name}" for name in new]


@pytest.mark.parametrize("where", ["convattn", "convattn.ops", "timm"])
def test_public_names_are_the_listed_ones(where: str) -> None:
    changes = surface_changes(json.loads(SURFACE.read_text())[where], public_names(where))
    assert not changes, "\n".join(f"{where} {change}" for change in changes)


@pytest.mark.parametrize("package", ["convattn", "convattn.ops"])
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, f"{package}.__all__ names {missing}, which it does not define"


class TestTheCheckers:
    """Each checker is shown something wrong, so that a rule that has stopped looking is noticed."""

    @pytest.mark.parametrize(
        ("module", "source", "reaches"),
        [
            ("convattn.ops.attend", "from convattn.layers import ACmix", "layers"),
            ("convattn.ops.attend", "def f():\n    import convattn.models.resnet", "models"),
            ("convattn.layers.acmix", "from convattn import models", "models"),
            ("convattn.layers.acmix", "from ..models import resnet", "models"),
            ("convattn.models.resnet", "from convattn import load_official", "convattn"),
            ("convattn.models.resnet", "import convattn", "convattn"),
            ("convattn.cost", "import convattn.tasks", "tasks"),
            ("convattn.official", "from convattn.cost import count", "cost"),
            ("convattn.tasks.fit", "from convattn.cli import app", "cli"),
            ("convattn.data.folder", "from convattn.ops import attend", "ops"),
            ("convattn.data.folder", "from convattn.report import write_report", "report"),
            ("convattn.report.page", "from convattn.tasks.inference import predict", "tasks"),
            ("convattn", "from convattn.cli import main", "cli"),
            ("convattn.cli.bench", "from benchmarks.op import measure", "benchmarks"),
            ("convattn.cost", "import reproduce", "reproduce"),
            ("benchmarks.op", "from reproduce import entries", "reproduce"),
            ("benchmarks.op", "from convattn.report.page import write_page", "report"),
        ],
    )
    def test_a_reversed_edge_is_found(self, module: str, source: str, reaches: str) -> None:
        (sentence,) = reversed_edges(source, module)
        assert f"must not import {reaches} " in sentence

    @pytest.mark.parametrize(
        ("module", "source"),
        [
            ("convattn.layers.acmix", "from convattn.ops import attend\nimport torch"),
            ("convattn.layers.acmix", "from .projection import Projection\nfrom ..ops import attend"),
            ("convattn.tasks.fit", "from convattn import data, errors, report"),
            ("convattn.tasks.fit", "import convattn"),
            ("convattn.report.page", "from convattn.data.types import LabelledImages"),
            ("convattn.report.page", "from convattn import __version__"),
            ("convattn.cli.info", "from convattn import ops"),
        ],
    )
    def test_a_right_edge_passes(self, module: str, source: str) -> None:
        assert reversed_edges(source, module) == []

    @pytest.mark.parametrize(
        ("module", "source", "count"),
        [
            ("convattn.ops.attend", "from . import eager", 0),
            ("convattn.ops.attend", "from .. import correlate", 0),
            ("convattn.ops", "from .. import layers", 1),
            ("convattn.ops.attend", "from ...layers import ACmix", 1),
        ],
    )
    def test_relative_imports_of_a_package_are_resolved(self, module: str, source: str, count: int) -> None:
        assert len(reversed_edges(source, module, is_package=True)) == count

    @pytest.mark.parametrize(
        "source",
        [
            "fast = torch.cuda.is_available()",
            "if x.device.type == 'cuda':\n    pass",
            "import os\nname = os.environ['CONVATTN_BACKEND']",
            "import os\nname = os.getenv('CONVATTN_BACKEND')",
            "y = x.cpu() if x.is_cuda else x",
            "if x.is_meta:\n    pass",
        ],
    )
    def test_a_device_read_is_found(self, source: str) -> None:
        assert len(device_reads(source)) == 1

    def test_passing_a_device_on_is_no_read(self) -> None:
        assert device_reads("y = torch.zeros(3, device=x.device, dtype=x.dtype)") == []

    def test_asserts_and_prints_are_found_and_docstrings_are_not(self) -> None:
        source = '"""Example:\n    >>> print(1)\n"""\nassert x\nprint(x)\nconsole.print(x)\n'
        assert (asserts(source), printing(source)) == (["line 4"], ["line 5"])

    def test_a_map_is_read(self) -> None:
        assert mapped("src/a/\n  ops/   functions\n  b.py\ncsrc/   kernels\nc.py  x\n") == {
            *("src/a", "src/a/ops", "src/a/b.py", "csrc", "c.py")
        }

    def test_a_name_that_went_or_came_is_found(self) -> None:
        gone, new = surface_changes(["ACmix", "ops"], ["ACmix", "xops"])
        assert "lost ops" in gone
        assert "new public xops" in new

    def test_only_networks_of_this_package_are_listed(self) -> None:
        assert {"acmix_resnet50", "resnet50"} & set(public_names("timm")) == {"acmix_resnet50"}

    def test_an_unknown_room_fails(self) -> None:
        with pytest.raises(pytest.fail.Exception, match="does not know"):
            reversed_edges("from convattn import ops", "convattn.attic.thing")


def test_the_wheel_holds_the_library_alone() -> None:
    """What a checkout has besides, its programs above all, is not installed."""
    tomllib, setuptools = pytest.importorskip("tomllib"), pytest.importorskip("setuptools")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    where, exclude = settings["packages"]["find"]["where"], settings["packages"]["find"]["exclude"]
    found = {package.split(".")[0] for folder in where for package in setuptools.find_packages(ROOT / folder, exclude)}
    assert (found, settings["py-modules"]) == ({"convattn"}, ["convattn_command"])


def test_the_wheel_holds_every_data_file() -> None:
    """Recipes, templates and the like are named in ``package-data``."""
    tomllib = pytest.importorskip("tomllib")
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["convattn"]
    named = {path for glob in globs for path in PACKAGE.glob(glob)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path for path in data - named if "_native" not in path.parts} == set()


def test_every_file_has_a_name_on_every_system():
    """A checkout on Windows stops at another."""
    folders = [ROOT / name for name in ("benchmarks", "csrc", "docs", "reproduce", "results", "src", "tests", "tools")]
    paths = [path.relative_to(ROOT) for folder in folders for path in folder.rglob("*")]
    assert len(paths) > 1000
    assert [str(path) for path in paths if re.search(r'[<>:"|?*\\]|[. ]$', path.name)] == []
