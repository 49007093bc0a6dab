import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore, Store

from convattn.errors import UserError
from convattn.tasks.launches import RESTARTS, agree, begun_run, write_launch
from convattn.tasks.recipes import load_recipe
from convattn.tasks.run_folder import RunFolder, create_run, write_start

TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "TORCHELASTIC_RESTART_COUNT": "1"}
PLAIN = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1", "GROUP_WORLD_SIZE": "1"}
SLURM = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*TORCHRUN, *PLAIN, *SLURM}:
        monkeypatch.delenv(name, raising=False)


def begin(out: Path, **settings: object) -> RunFolder:
    run = create_run(out, "net")
    write_launch(run)
    write_start(run, load_recipe("digits", settings), ["a"], [], ["accuracy"])
    return run


@pytest.mark.parametrize("variables", [TORCHRUN, PLAIN, SLURM], ids=["torchrun --rdzv-id", "torchrun", "SLURM"])
def test_a_restarted_command_goes_on_with_its_run(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = load_recipe("digits")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert begun_run(tmp_path, recipe) is None, "it had not begun a run"
    begin(tmp_path, seed=1)
    assert begun_run(tmp_path, recipe) is None, "that is a run of other settings"
    run = begin(tmp_path)
    assert begun_run(tmp_path, recipe) == run
    for name in RESTARTS:
        monkeypatch.setenv(name, "0")
    assert begun_run(tmp_path, recipe) is None, "it is started for the first time"


def test_the_run_of_another_launch_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin(tmp_path)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    begin(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert begun_run(tmp_path, load_recipe("digits")) is None


def test_machines_without_a_common_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**PLAIN, "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--rdzv-id"):
        begun_run(tmp_path, load_recipe("digits"))


def agreed(store: Store, ranks: list[int], world: int = 3) -> list[str]:
    """What processes agree on that come in this order, each well after the one before."""
    with ThreadPoolExecutor(world) as pool:
        found = []
        for rank in ranks:
            found.append(pool.submit(agree, store, rank, world))
            time.sleep(0.1)
        return [one.result(10) for one in found]


@pytest.mark.parametrize("ranks", [[0, 1, 2], [1, 2, 0], [2, 0, 1]])
def test_processes_that_are_started_again_agree_on_a_name_of_their_own(ranks: list[int]) -> None:
    """The store keeps what those before them have left there, and some come before the first process."""
    store = HashStore()
    names = [agreed(store, ranks) for _ in range(3)]
    assert [len(set(each)) for each in names] == [1, 1, 1]
    assert len({each[0] for each in names}) == 3
