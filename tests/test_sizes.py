"""Files and functions stay short enough to be read at once, as CONTRIBUTING.md says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_architecture import MODULES, ROOT, each_module

FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 50, 8
"""At most; a function's signature and docstring are not counted."""
OPERATORS = ("formulas.py", "acmix/reference.py", "acmix/__init__.py", "attend/__init__.py")
SIGNATURES = {f"src/convattn/ops/{name}" for name in OPERATORS}
"""Files whose functions take what an operator takes, each input by its name."""
COMMANDS = re.compile(r"^src/convattn/cli/|/command\.py$")
"""Files whose functions are commands: but for one argument, each parameter is an option with a default."""


def long_functions(source: str) -> list[str]:
    """The functions of a file with too many lines, what is before the first statement not counted."""
    found = []
    for node in functions(source):
        first = node.body[1 if ast.get_docstring(node) is not None and len(node.body) > 1 else 0]
        lines = (node.end_lineno or 0) - first.lineno + 1
        if lines > FUNCTION_LINES:
            found.append(f"line {node.lineno}: {node.name} has {lines} lines of at most {FUNCTION_LINES}")
    return found


def wide_functions(source: str, path: str = "") -> list[str]:
    """The functions with too many parameters: neither constructors nor kernels nor commands, whose options they are."""
    if path in SIGNATURES:
        return []
    found = []
    for node in functions(source):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
        is_kernel = any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
        given = len(node.args.defaults) + sum(default is not None for default in node.args.kw_defaults)
        is_command = COMMANDS.search(path) is not None and given >= count - 1
        if count > PARAMETERS and node.name != "__init__" and not is_kernel and not is_command:
            found.append(f"line {node.lineno}: {node.name} has {count} parameters of at most {PARAMETERS}")
    return found


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, methods and inner ones too."""
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


SOURCES = [*MODULES, *(path for form in ("tests/**/*.py", "tools/*.py", "csrc/*.*") for path in ROOT.glob(form))]


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    lines, name = len(path.read_text().splitlines()), path.relative_to(ROOT).as_posix()
    assert lines <= FILE_LINES, f"{name} has {lines} lines of at most {FILE_LINES}: split it"


@each_module()
def test_functions_stay_readable(path: Path) -> None:
    name, source = path.relative_to(ROOT).as_posix(), path.read_text()
    kernels = "triton" in path.stem
    found = [] if kernels else [*long_functions(source), *wide_functions(source, name)]
    assert not found, f"{name}: divide the function, or pass one object of options: {'; '.join(found)}"


def test_a_long_function_and_a_wide_one_are_found() -> None:
    body = "".join(f"    x = {n}\n" for n in range(51))
    assert long_functions(f"def f():\n{body}") == ["line 1: f has 51 lines of at most 50"]
    assert long_functions(f'def f():\n    """{"x" * 9}\n\n    y\n    """\n{body[10:]}') == []
    wide = "self, a, b, c, d, *, e, f, g, h, i"
    assert wide_functions(f"def f({wide}): ...") == ["line 1: f has 9 parameters of at most 8"]
    for passed in (f"def __init__({wide}): ...", f"@triton.jit\ndef f({wide}): ..."):
        assert wide_functions(passed) == []
    options = ", ".join(f"{name}=None" for name in "abcdefghi")
    assert wide_functions(f"def f({options}): ...", "reproduce/command.py") == []
    assert len(wide_functions(f"def f({options}): ...", "reproduce/code.py")) == 1
