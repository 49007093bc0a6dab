"""Training on tar shards, on the disk and at a URL: the run of the files' data set, and exact after SIGKILL."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, Start
from test_resume import assert_same_run, finish, kill_five_times, run_folder

from tests.data import same_data
from tests.data.ranges import Server, serving
from tests.tasks.test_formats import curve


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos in four shards."""
    root = tmp_path_factory.mktemp("shards")
    files = sorted(photos.glob("*/*.png"), key=lambda file: (file.name, file.parent.name))
    for place in range(4):
        with tarfile.open(root / f"train-{place:03}.tar", "w") as shard:
            for file in files[place::4]:
                name = f"{file.parent.name}-{file.stem}"
                same_data.add(shard, f"{name}.png", file.read_bytes())
                same_data.add(shard, f"{name}.cls", file.parent.name.encode())
    return root


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("upath", reason="needs pip install 'convattn[data]'")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with serving(shards) as found:
        yield found


def assert_killed_is_whole(start: Start, data: str, shards: Path, workers: int, tmp_path: Path) -> None:
    """Assert that a killed run on some data ends as a run on the shards does."""
    finish(start, ["train", "--out", str(tmp_path / "whole"), *TINY, f"--data={shards}"])
    arguments = [*TINY, f"--data={data}", f"data.workers={workers}"]
    kill_five_times(start, tmp_path / "killed", arguments, spread=0.15, seed=workers)
    assert_same_run(run_folder(tmp_path / "killed"), run_folder(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_killed_five_times_ends_bit_equal(
    workers: int, start: Start, shards: Path, tmp_path: Path
) -> None:
    assert_killed_is_whole(start, str(shards), shards, workers, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_at_a_url_killed_five_times_is_that_on_the_disk(
    workers: int, start: Start, shards: Path, server: Server, tmp_path: Path
) -> None:
    assert_killed_is_whole(start, f"{server.url}/", shards, workers, tmp_path)


def test_shards_at_a_url_give_the_curve_of_those_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("upath", reason="needs pip install 'convattn[data]'")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    root = same_data.shards(tmp_path / "shards")
    expected = curve("classification", root, tmp_path)
    with serving(root) as server:
        found = curve("classification", f"{server.url}/", tmp_path)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
