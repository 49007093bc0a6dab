"""Launchers that start a command again, torchrun after a failure and SLURM after a requeue: it goes on with its run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.run_folder import RunFolder, recipe_text, write_text

RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def launch() -> str | None:
    """Return a name for what has started this process that stays when it starts it again; None where it has none.

    torchrun's machines have no name in common unless it is given ``--rdzv-id`` or ``--standalone``.
    """
    job, given = os.environ.get("SLURM_JOB_ID"), os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job is not None:
        return f"slurm {job}"
    if given != "none":
        return f"torchrun {given}"
    is_one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"torchrun {socket.gethostname()} {os.getppid()}" if is_one_machine else None


def write_launch(run: RunFolder) -> None:
    """Note in a run's folder what has started it."""
    name = launch()
    if name is not None:
        write_text(run.launch, f"{name}\n")


def begun_run(out: Path, recipe: Recipe) -> RunFolder | None:
    """Return the run that this command began before its launcher started it again.

    It is the newest run in ``out`` of the same launch with the same settings. None where the launcher has not
    restarted the command, or where that run had no folder yet.

    Raises:
        UserError: torchrun restarted several machines that have no name in common.
    """
    if not any(int(os.environ.get(name) or 0) for name in RESTARTS):
        return None
    name, settings = launch(), recipe_text(recipe)
    if name is None:
        raise UserError(
            "torchrun started this command again, but cannot tell which run it began: give torchrun --rdzv-id with a"
            " name of its own, and go on with this run by convattn train --resume"
        )
    for config in sorted(out.glob("*/config.yaml"), reverse=True):
        run = RunFolder(config.parent)
        is_same = not run.path.is_symlink() and run.launch.is_file() and run.launch.read_text().strip() == name
        if is_same and config.read_text(encoding="utf-8") == settings:
            return run
    return None
