"""What is imported when, what that costs, and that torch and timm know the operators and networks all the same."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import convattn

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "lightning", "matplotlib", "scipy")
VERBS = ("train", "val", "predict", "explain", "demo", "export", "convert", "info", "list", "cost", "check-data")
HELP = [
    *(["--help"], ["trian"], ["train", "--epohcs", "3"]),
    *([verb, "--help"] for verb in VERBS),
    *(["bench", "--help"], ["bench", "op", "--help"]),
]


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(program: str, *names: str) -> list[str]:
    """Which of these modules are there after a program."""
    return run(f"{program}\nimport sys\nprint('MODULES', *(n for n in {names} if n in sys.modules))").split()[1:]


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert imported("import convattn", *HEAVY) == []


def test_help_and_typos_import_nothing_heavy() -> None:
    program = f"""
import sys, io, contextlib
from convattn_command import main
for words in {HELP}:
    sys.argv = ["convattn", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            assert end.code == (0 if "--help" in words else 2), (words, end.code)
    assert "Usage" in out.getvalue() or "Usage" in str(end), words
"""
    assert imported(program, *HEAVY) == []


def test_an_operator_needs_torch_alone_which_knows_it_as_soon_as_it_is_there() -> None:
    program = """
from importlib.util import find_spec
import convattn
assert find_spec("torch").loader.is_package("torch") and find_spec("torch").origin.endswith("__init__.py")
import torch
assert torch.ops.convattn.acmix.default  # as torch.export.load looks for it
from convattn import ACmix
from torch.utils.flop_counter import flop_registry
assert torch.ops.convattn.acmix in flop_registry
assert type(torch.__loader__) is type(torch.__spec__.loader) is type(convattn.__loader__)
"""
    assert imported(program, "timm", "torchvision", "torch._dynamo", "lightning") == []


@cache
def seconds(*arguments: str, times: int = 3) -> float:
    """CPU time of a fresh interpreter, which other work on the machine hardly changes; the least of some runs."""
    found = []
    for _ in range(times):
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
        process.returncode = 0
        found.append(usage.ru_utime + usage.ru_stime)
    return min(found)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="no wait4 on this system")
@pytest.mark.parametrize(
    "program",
    ["import convattn", "from convattn_command import main; main()"],
    ids=["import convattn", "convattn --help"],
)
def test_it_starts_in_a_third_of_the_time_of_torch(program: str) -> None:
    assert seconds("-c", program, "--help") < 0.35 * seconds("-c", "import torch", times=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_timm_knows_the_networks_in_every_order_of_imports() -> None:
    """One process imports what takes long, then forks for every order."""
    orders = (
        *("timm, convattn", "convattn, timm.layers", "convattn.layers.timm_operators", "convattn.models.resnet"),
        *("convattn.official", "convattn.convert", "convattn.optimize", "convattn.tasks.inference"),
    )
    program = f"""
import os, sys, traceback
import huggingface_hub, safetensors.torch, torch, torchvision  # all that timm imports
for order in {orders}:
    if os.fork() == 0:
        try:
            exec("import " + order)
            import timm, convattn
            assert timm.is_model("acmix_resnet50"), "not registered"
            assert type(timm.__loader__) is type(timm.__spec__.loader) is type(torch.__loader__)
            assert not {{"lightning", "torchmetrics", "matplotlib", "scipy"}} & set(sys.modules), "predict needs none"
            assert callable(convattn.convert) and callable(convattn.optimize), "a package in place of its function"
        except BaseException:
            print(order, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    os.wait()
"""
    assert run(program) == ""


class TestTheNames:
    def test_a_type_checker_sees_what_python_imports(self) -> None:
        """The imports under TYPE_CHECKING, and the table of where each name comes from."""
        tree = ast.parse(Path(convattn.__file__).read_text())
        guarded = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
        seen = {i.module: sorted(alias.name for alias in i.names) for i in guarded.body}
        rooms = seen.pop("convattn")
        assert seen == {home: sorted(names) for home, names in convattn._HOMES.items()}
        assert set(rooms) <= set(convattn._ROOMS)
        assert {"__version__", *rooms, *(name for names in seen.values() for name in names)} == set(convattn.__all__)

    @pytest.mark.parametrize("package", ["convattn", "convattn.layers"])
    def test_all_of_them_are_listed_and_come_with_a_star(self, package: str) -> None:
        namespace: dict[str, object] = {}
        exec(f"import {package} as package; from {package} import *", namespace)
        assert set(namespace["package"].__all__) <= set(namespace) & set(dir(namespace["package"]))
        assert all(namespace[name] is getattr(namespace["package"], name) for name in namespace["package"].__all__)

    @pytest.mark.parametrize("package", ["convattn", "convattn.layers"])
    def test_a_name_that_is_not_there(self, package: str) -> None:
        with pytest.raises(ImportError, match="cannot import name 'ACMix'"):
            exec(f"from {package} import ACMix")
        with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'ACMix'"):
            exec(f"import {package} as package; package.ACMix", {})

    @pytest.mark.parametrize("name", ["ACmix", "convert", "export", "OptimizeReport", "optimize"])
    def test_they_pickle(self, name: str) -> None:
        value = getattr(convattn, name)
        assert pickle.loads(pickle.dumps(value)) is value

    def test_a_fault_inside_is_told_and_not_taken_for_a_missing_name(self, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("raise AttributeError('built for another numpy')")
        program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    from convattn import ACmix
except ImportError as error:
    print(error)
"""
        assert run(program) == "convattn.layers cannot be imported: built for another numpy\n"
