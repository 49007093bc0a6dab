"""Tar shards at a URL, on a server that counts what it gives to all processes and workers together."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from convattn.data.checks import check_data
from convattn.data.classes import FolderImages, open_classes
from convattn.data.images import ImageError
from convattn.data.sampler import GlobalBatchSampler
from convattn.data.types import ClassificationData, LabelledImages
from convattn.errors import UserError
from convattn.tasks.loaders import Sample, SkipLog, TrainingSamples
from tests.data import same_data
from tests.data.ranges import Server, serving

pytest.importorskip("upath", reason="needs pip install 'convattn[data]'")
pytest.importorskip("aiohttp", reason="what fsspec reads http:// with")

Batches = list[list[tuple[str, int]]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return same_data.shards(tmp_path / "shards")


@pytest.fixture
def server(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with serving(shards) as found:
        yield found


def opened(server: Server) -> ClassificationData:
    return open_classes(f"{server.url}/")


def shard_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.tar"))


def image_bytes(folder: Path, split: str) -> int:
    found = 0
    for shard in folder.glob(f"{split}-*.tar"):
        with tarfile.open(shard) as file:
            found += sum(member.size for member in file if member.name.endswith(".png"))
    return found


def same(left: LabelledImages, right: LabelledImages) -> bool:
    def content(images: LabelledImages) -> list[tuple[str, int, bytes]]:
        return [(images.name(i), images.label(i), images.image(i).tobytes()) for i in range(len(images))]

    return content(left) == content(right)


def test_it_is_the_data_set_of_the_folder(server: Server, shards: Path) -> None:
    there, here = opened(server), open_classes(shards)
    assert (there.classes, there.skipped) == (here.classes, here.skipped)
    assert same(there.train, here.train)
    assert same(there.val, here.val)


def test_shards_are_read_once_to_list_them(server: Server, shards: Path) -> None:
    opened(server)
    assert server.bytes_of_shards() <= shard_bytes(shards)
    server.given.clear()
    opened(server)
    assert server.bytes_of_shards() == 0
    with (shards / "train-001.tar").open("ab") as file:
        file.write(bytes(10240))
    assert len(opened(server).train) == 12
    assert {name for name in server.given if name.endswith(".tar")} == {"train-001.tar"}  # it changed


def epoch(images: FolderImages, epoch: int, *, world: int = 1, workers: int = 0, first: int = 0) -> list[Batches]:
    """Return the batches of every process: the names of the images, with the sum of their pixels."""
    found = []
    sample = Sample(images.name, lambda image, name: (name, sum(image.tobytes())))  # type: ignore[arg-type, return-value]
    for rank in range(world):
        sampler = GlobalBatchSampler(len(images), 4, seed=3, rank=rank, world=world)
        sampler.start(epoch, first)
        samples = TrainingSamples(images, sample, 3, SkipLog())
        loader = DataLoader(samples, batch_sampler=sampler, collate_fn=list, num_workers=workers)
        found.append(list(loader))
    return found


def test_an_epoch_reads_every_image_once_over_all_processes_and_workers(server: Server, shards: Path) -> None:
    images = opened(server).train
    assert isinstance(images, FolderImages)
    server.given.clear()
    halves = epoch(images, 1, world=2, workers=2)
    assert server.bytes_of_shards() == image_bytes(shards, "train")
    names = [name for half in halves for batch in half for name, _ in batch]
    assert (len(names), set(names)) == (12, set(images.files))


def test_the_order_is_that_of_seed_and_epoch_and_goes_on_where_it_stopped(server: Server, shards: Path) -> None:
    there, here = opened(server).train, open_classes(shards).train
    assert isinstance(there, FolderImages)
    assert isinstance(here, FolderImages)
    (whole,) = epoch(there, 1)
    assert [whole] == epoch(here, 1) == epoch(there, 1, workers=2)
    assert [whole] != epoch(there, 2)
    halves = epoch(there, 1, world=2)
    assert [sorted(left + right) for left, right in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    server.given.clear()
    assert epoch(there, 1, first=2) == [whole[2:]]
    assert server.bytes_of_shards() < image_bytes(shards, "train") / 2


def test_a_server_that_fails_ends_the_epoch_and_costs_no_image(server: Server) -> None:
    images = opened(server).train
    assert isinstance(images, FolderImages)
    server.broken = True
    says = r"train-00\d\.tar: [\d,]+ bytes from byte \d+ on cannot be read: 503.*the network answers, then go on with"
    with pytest.raises(UserError, match=says) as error:
        epoch(images, 0)
    assert not isinstance(error.value, ImageError)
    with pytest.raises(UserError, match=says) as error:
        images.image(0)
    assert not isinstance(error.value, ImageError)  # which would leave the image out


def test_a_shard_that_is_shorter_now(server: Server, shards: Path) -> None:
    images = opened(server).train
    (shards / "train-000.tar").write_bytes(b"x" * 3000)
    with pytest.raises(UserError, match=r"train-000\.tar: .* cannot be read: [\d,]+ bytes came; check that the file"):
        images.fetch(range(len(images)))  # type: ignore[attr-defined]


def test_check_data_says_that_no_image_is_opened(server: Server) -> None:
    (part,) = check_data(f"{server.url}/")
    assert part.counts == {"training images": 12, "validation images": 12, "classes": 3}
    assert [problem.what for problem in part.problems] == [
        "the images are not opened: training passes over those that it cannot read"
    ]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("{url}/none/", "nothing is there, or nothing answers; name a tar file or a folder of them"),
        ("http://127.0.0.1:1/shards/", "nothing is there, or nothing answers"),
        ("gopher://a/b", "this kind of URL cannot be read: Unsupported filesystem: 'gopher'"),
        ("{url}/classes.txt", "no tar file, packed, or damaged"),
    ],
)
def test_a_url_without_shards(server: Server, place: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_classes(place.format(url=server.url))
