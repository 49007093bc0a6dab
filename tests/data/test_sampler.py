import numpy as np
import pytest

from convattn.data.sampler import GlobalBatchSampler, ShardSampler
from convattn.errors import UserError


def batches(sampler: GlobalBatchSampler, epoch: int = 0, first: int = 0) -> list[list[tuple[int, int]]]:
    sampler.start(epoch, first)
    return list(sampler)


def test_an_epoch_takes_every_image_at_most_once() -> None:
    sampler = GlobalBatchSampler(103, 10, seed=1)
    seen = [index for batch in batches(sampler) for _, index in batch]
    assert sampler.batches_per_epoch == 10
    assert len(seen) == len(set(seen)) == 100
    assert set(seen) <= set(range(103))


@pytest.mark.parametrize("world", [2, 4])
def test_the_processes_together_see_each_global_batch(world: int) -> None:
    whole = batches(GlobalBatchSampler(50, 8, seed=3), epoch=2)
    shares = [batches(GlobalBatchSampler(50, 8, seed=3, rank=rank, world=world), epoch=2) for rank in range(world)]
    for step, batch in enumerate(whole):
        interleaved = [shares[i % world][step][i // world] for i in range(8)]
        assert interleaved == batch


def test_a_start_inside_an_epoch_gives_the_rest_of_it() -> None:
    sampler = GlobalBatchSampler(64, 8, seed=0)
    assert batches(sampler, epoch=5, first=3) == batches(sampler, epoch=5)[3:]
    assert batches(sampler, epoch=5, first=8) == []


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = batches(GlobalBatchSampler(64, 8, seed=0))
    assert first == batches(GlobalBatchSampler(64, 8, seed=0))
    assert first != batches(GlobalBatchSampler(64, 8, seed=1))
    indices = [[index for _, index in batch] for batch in first]
    assert indices != [[index for _, index in batch] for batch in batches(GlobalBatchSampler(64, 8, seed=0), epoch=1)]


def test_repeats_stand_side_by_side_as_views_of_their_own() -> None:
    once, thrice = GlobalBatchSampler(100, 8, seed=4), GlobalBatchSampler(100, 8, seed=4, repeats=3)
    assert thrice.batches_per_epoch == once.batches_per_epoch == 12
    pairs = [pair for epoch in (0, 1) for batch in batches(thrice, epoch=epoch) for pair in batch]
    assert len(set(pairs)) == len(pairs) == 2 * 96
    for epoch in (0, 1):
        order = [index for batch in batches(once, epoch=epoch) for _, index in batch]
        expected = [(3 * epoch + copy, index) for index in order[:32] for copy in range(3)]
        assert pairs[96 * epoch : 96 * (epoch + 1)] == expected
    shares = [batches(GlobalBatchSampler(100, 8, seed=4, rank=rank, world=4, repeats=3)) for rank in range(4)]
    assert [shares[i % 4][5][i // 4] for i in range(8)] == batches(thrice)[5]
    assert batches(thrice, epoch=1, first=7) == batches(thrice, epoch=1)[7:]


def test_iterating_changes_nothing() -> None:
    sampler = GlobalBatchSampler(64, 8, seed=0)
    sampler.start(1, 2)
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize(("size", "world", "batch"), [(7, 1, 6), (7, 2, 6), (1, 1, 1), (5, 4, 4)])
def test_a_small_data_set_makes_one_batch(size: int, world: int, batch: int) -> None:
    sampler = GlobalBatchSampler(size, 64, seed=0, world=world)
    assert (sampler.batch_size, sampler.batches_per_epoch) == (batch, 1)


def test_too_many_processes_are_refused() -> None:
    with pytest.raises(UserError, match="divisible by the 3 processes: take 63"):
        GlobalBatchSampler(100, 64, seed=0, world=3)
    with pytest.raises(UserError, match="3 training images are too few for 4 processes"):
        GlobalBatchSampler(3, 64, seed=0, world=4)


def test_shards_cover_every_image_once() -> None:
    shards = [list(ShardSampler(11, rank=rank, world=3)) for rank in range(3)]
    assert sorted(index for shard in shards for index in shard) == list(range(11))
    assert [len(ShardSampler(11, rank=rank, world=3)) for rank in range(3)] == [4, 4, 3]


def test_weights_draw_every_class_as_often() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    weights = 1 / np.bincount(labels)[labels]
    sampler = GlobalBatchSampler(100, 10, seed=0, weights=weights)
    drawn: list[int] = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += [index for batch in sampler for _, index in batch]
    assert len(drawn) == 2000
    assert 0.46 < labels[drawn].mean() < 0.54  # five standard deviations of 2,000 draws
    sampler.start(3, 4)
    rest = list(sampler)
    sampler.start(3, 0)
    assert list(sampler)[4:] == rest
