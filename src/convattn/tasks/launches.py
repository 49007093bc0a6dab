"""Launchers that start a command again, torchrun after a failure and SLURM after a requeue: it goes on with its run."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from torch import distributed

from convattn.data.writing import write_text
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.run_folder import RunFolder, recipe_text

POLL = 0.02
"""Seconds between two looks into torchrun's store."""
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


def join() -> None:
    """Join the processes of a torchrun, under a name that those it has stopped do not know.

    torchrun 2.14 keeps one store over its restarts, with the addresses of the processes that it has stopped: the new
    ones connect to these if they are the faster (pytorch issue 135712). Lightning takes a group that is there.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        ours = distributed.PrefixStore(agree(store, rank, world), store)
        distributed.init_process_group(store=ours, rank=rank, world_size=world)


def agree(store: distributed.Store, rank: int, world: int) -> str:
    """Return a name that all processes of now have and none from before a restart.

    The first process makes it up, the others sign it, and it holds once the first has listed their signatures: what
    another first process has left in the store lists none of theirs.

    Args:
        store: of all processes; it may have the entries of earlier ones.
        rank: of this process.
        world: how many processes there are.

    Raises:
        UserError: the others did not come within torch's limit for a process group.
    """
    own, last = uuid.uuid4().hex, time.monotonic() + distributed.default_pg_timeout.total_seconds()
    if rank == 0:
        store.set("convattn/name", own)
    name = ""
    while time.monotonic() < last:
        if rank == 0:
            signed = [f"convattn/{own}/{other}" for other in range(1, world)]
            if not signed or store.check(signed):
                store.set(f"convattn/{own}", " ".join(store.get(key).decode() for key in signed))
                return own
        elif store.check(["convattn/name"]):
            if name != (name := store.get("convattn/name").decode()):
                store.set(f"convattn/{name}/{rank}", own)
            if store.check([f"convattn/{name}"]) and own in store.get(f"convattn/{name}").decode().split():
                return name
        time.sleep(POLL)
    raise UserError(f"torchrun started {world} processes, and process {rank} did not find the others")
