"""The notebooks are valid, small, hold the outputs of one run from the top, and run again."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 1_500_000
NEEDED = ("nbclient", "nbformat", "ipykernel", "matplotlib", "sklearn")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(path: Path) -> list[dict[str, Any]]:
    """A notebook's cells of code, in order."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    """A cell's code without lines that are Jupyter's own."""
    lines = "".join(cell["source"]).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


def missing() -> list[str]:
    """What executing a notebook needs and this environment lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def executed(path: Path, tmp_path: Path) -> Any:
    """The notebook after a run of all cells, by a kernel of this very Python; its folder is an empty one."""
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(AsyncKernelManager):
        """Starts the Python that runs the tests, whatever kernels are registered on the machine."""

        @property
        def kernel_spec(self) -> KernelSpec:
            import sys

            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python", language="python")

    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_manager_class=ThisPython, resources=resources).execute()
    return book


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["from_convolution_to_xvolution.ipynb"]


@each_notebook
def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST


@each_notebook
def test_the_stored_outputs_are_of_one_run_from_the_top(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 8


@each_notebook
def test_it_holds_nothing_of_the_machine_that_ran_it(path: Path) -> None:
    from tests.test_docs import MACHINE_PATH

    book = json.loads(path.read_text())
    text = "".join(
        "".join(part)
        for cell in book["cells"]
        for part in (cell["source"], *(output.get("text", "") for output in cell.get("outputs", ())))
    )
    assert not MACHINE_PATH.findall(text)
    assert [cell["metadata"] for cell in book["cells"] if cell["metadata"]] == []
    assert set(book["metadata"]) == {"kernelspec", "language_info"}


@each_notebook
def test_what_it_imports_of_this_package_exists(path: Path) -> None:
    tree = ast.parse("\n".join(source_of(cell) for cell in code_cells(path)))
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convattn")
    ]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@each_notebook
def test_the_documentation_names_it(path: Path) -> None:
    assert f"notebooks/{path.name}" in (ROOT / "docs" / "paper.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(missing() != [], reason=f"needs {', '.join(missing())}: pip install 'convattn[dev]'")
@each_notebook
def test_it_runs(path: Path, tmp_path: Path) -> None:
    """Its own ``assert_close`` are the assertions; what it shows must be what is stored, picture for picture."""
    before, after = code_cells(path), [cell for cell in executed(path, tmp_path).cells if cell.cell_type == "code"]
    kinds = [[sorted(output.get("data", {})) for output in cell["outputs"]] for cell in before]
    assert [
        [sorted(output.get("data", {})) for output in cell.outputs if output.get("name") != "stderr"] for cell in after
    ] == kinds
    assert list(tmp_path.iterdir()) == []
