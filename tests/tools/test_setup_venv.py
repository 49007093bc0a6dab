"""The set-up that every make target runs first, with interpreters that only pretend."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup_venv.sh"

# Answers the script's questions by what they contain, and writes down what it is asked to do.
INTERPRETER = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
    *'"%d.%d"'*) echo {version} ;;
    *'sys.version_info < (3, 11)'*) exit {too_old} ;;
    *'import venv'*) exit {no_venv} ;;
    '-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *'--editable'*) exit {install_fails} ;;
esac
"""


class Checkout:
    """A folder with the script, and a PATH whose only Python is the one that is put there."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.log = root / "repo with space", root / "bin", root / "log"
        self.venv = self.root / ".venv"
        (self.root / "tools").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(SCRIPT, self.root / "tools")
        (self.root / "pyproject.toml").write_text("[project]\n")
        for tool in ("cat", "cmp", "cp", "dirname", "mkdir", "mv", "rm", "sh"):
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))

    def put_python(self, version="3.12", *, too_old=0, no_venv=0, install_fails=0):
        python = self.bin / "python3"
        python.write_text(
            INTERPRETER.format(version=version, too_old=too_old, no_venv=no_venv, install_fails=install_fails)
        )
        python.chmod(0o755)

    def set_up(self, **environment):
        self.log.write_text("")
        environment = {"PATH": str(self.bin), "LOG": str(self.log)} | environment
        return subprocess.run(
            [str(self.root / "tools" / "setup_venv.sh")], env=environment, capture_output=True, text=True, timeout=60
        )

    def did(self, what: str) -> bool:
        return what in self.log.read_text()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_fresh_checkout_gets_its_environment_and_only_once(checkout):
    checkout.put_python()
    assert checkout.set_up().returncode == 0
    assert checkout.did("-m venv")
    assert checkout.did("--editable .[dev]")

    again = checkout.set_up()
    assert (again.returncode, again.stderr) == (0, "")
    assert not checkout.did("pip install")


def test_a_changed_project_is_installed_again_in_place(checkout):
    checkout.put_python()
    checkout.set_up()
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert checkout.set_up().returncode == 0
    assert checkout.did("--editable")
    assert not checkout.did("-m venv")


def test_a_moved_checkout_is_installed_again(checkout):
    checkout.put_python()
    checkout.set_up()
    moved = checkout.root.with_name("elsewhere")
    checkout.root = checkout.root.rename(moved)
    assert checkout.set_up().returncode == 0
    assert checkout.did("--editable")


def test_an_installation_that_failed_is_started_anew(checkout):
    checkout.put_python(install_fails=1)
    failed = checkout.set_up()
    assert failed.returncode == 1
    assert "did not get through" in failed.stderr

    checkout.put_python()
    assert checkout.set_up().returncode == 0
    assert checkout.did("-m venv")


@pytest.mark.parametrize("damage", ["dangling", "file", "empty"])
def test_a_broken_environment_is_built_anew(checkout, damage):
    checkout.put_python()
    checkout.set_up()
    shutil.rmtree(checkout.venv)
    if damage == "dangling":
        (checkout.venv / "bin").mkdir(parents=True)
        (checkout.venv / "bin" / "python").symlink_to("gone")
    elif damage == "file":
        checkout.venv.write_text("")
    else:
        checkout.venv.mkdir()
    repaired = checkout.set_up()
    assert repaired.returncode == 0
    assert "building it anew" in repaired.stderr
    assert checkout.did("--editable")


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ({"version": "3.8", "too_old": 1}, "python3 is Python 3.8; convattn needs 3.11 or newer"),
        ({"version": "3.11", "no_venv": 1}, "sudo apt-get install python3.11-venv"),
        (None, "none of these runs: python3 python python3.14"),
    ],
    ids=["too old", "no venv", "no Python"],
)
def test_a_machine_that_cannot_is_told_what_to_install(checkout, python, message):
    if python is not None:
        checkout.put_python(**python)
    refused = checkout.set_up()
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "make PYTHON=" in refused.stderr
    assert not checkout.venv.exists()


def test_a_named_interpreter_is_the_only_one_tried(checkout):
    checkout.put_python()
    refused = checkout.set_up(PYTHON="no/such/python")
    assert refused.returncode == 1
    assert "none of these runs: no/such/python" in refused.stderr
