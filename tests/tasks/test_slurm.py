"""The job script of docs/scale.md: bash runs it, the command parses its words, Lightning takes SLURM's variables."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from typer.testing import CliRunner

from convattn.cli import app
from convattn.tasks.recipes import load_recipe
from convattn.tasks.training import make_trainer

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
SCRIPT = re.search(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)[1]
OPTIONS = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SCRIPT, re.MULTILINE))


def words() -> list[str]:
    (line,) = (line for line in SCRIPT.replace("\\\n", " ").splitlines() if line.startswith("srun "))
    return shlex.split(line)[1:]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The variables that SLURM sets in a process of the job; the command's devices and nodes."""
    nodes, tasks = int(OPTIONS["nodes"]), int(OPTIONS["ntasks-per-node"])
    variables = {"JOB_ID": 4711, "JOB_NAME": OPTIONS["job-name"], "NNODES": nodes, "NTASKS": nodes * tasks}
    variables |= {"NTASKS_PER_NODE": tasks, "PROCID": tasks + 1, "LOCALID": 1, "NODEID": 1, "NODELIST": "node[3-10]"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # which Lightning sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning's trainer sets it, and loggers of later tests ask it
    given = words()
    return {name: int(given[given.index(f"--{name}") + 1]) for name in ("devices", "num-nodes")}


def test_the_command_of_the_script_parses() -> None:
    program, *given = words()
    assert program == "convattn"
    done = CliRunner().invoke(app, [*given, "--help"])
    assert done.exit_code == 0, done.output


def test_lightning_finds_the_processes_of_the_job(job: dict[str, int]) -> None:
    environment = SLURMEnvironment(auto_requeue=False)
    environment.validate_settings(job["devices"], job["num-nodes"])
    assert environment.main_address == "node3"
    assert (environment.world_size(), environment.global_rank(), environment.node_rank()) == (64, 9, 1)
    given = words()
    recipe = load_recipe(given[given.index("--recipe") + 1], {"data.folder": "shared/imagenet"})
    assert recipe.batch_size % environment.world_size() == 0


def test_lightning_writes_no_checkpoints_of_its_own(job: dict[str, int]) -> None:
    settings = {"trainer.accelerator": "cpu", "trainer.devices": job["devices"], "trainer.num_nodes": job["num-nodes"]}
    trainer = make_trainer(load_recipe("digits", settings), callbacks=[])
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    assert trainer.world_size == 64


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (130, "requeue 4711\n"), (2, "")])
def test_the_script_puts_a_stopped_job_back(code: int, requeued: str, tmp_path: Path) -> None:
    """Programs in place of SLURM's, which is not here."""
    log = tmp_path / "scontrol.txt"
    log.touch()
    for name, body in {"srun": f"exit {code}", "scontrol": f'echo "$@" >> {shlex.quote(str(log))}'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "4711"}
    done = subprocess.run(["bash", "-c", SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert log.read_text() == requeued
