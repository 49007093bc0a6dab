import pytest
import torch
from torch import nn

from convattn.bench import memory
from convattn.bench.__main__ import as_table
from convattn.bench.memory import KEPT, PEAK, MemoryCase, bytes_kept, measure

SMALL = MemoryCase(batch=2, channels=16, height=24, width=24)
MAP = 2 * 16 * 24 * 24 * 4  # bytes of one such map


def test_storages_are_counted_once_and_parameters_not_at_all():
    x = torch.randn(2, 16, 24, 24, requires_grad=True)
    assert bytes_kept(nn.Conv2d(16, 16, 3), x) == MAP
    assert bytes_kept(nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3)), x) == MAP, "the ReLU's output is shared"
    assert bytes_kept(nn.Sequential(nn.Sigmoid(), nn.Tanh()), x) == 2 * MAP


def test_every_layer_is_measured_in_fresh_processes():
    record = measure(SMALL, processes=1)
    kept = {layer: measured[KEPT].median for layer, measured in record.results.items()}
    assert set(kept) == set(memory.LAYERS)
    assert kept["Conv2d 3x3"] == MAP
    assert kept["ACmix by unfold"] > 49 * MAP, "unfolding keeps a copy for each of the 49 offsets"
    assert kept["ACmix"] < 49 * MAP / 2, "ACmix keeps no copy for every offset"
    peak = {layer: measured[PEAK].median for layer, measured in record.results.items()}
    assert peak["Conv2d 3x3"] < 49 * MAP < 2 * 49 * MAP < peak["ACmix by unfold"]
    assert record.environment.threads == SMALL.threads
    assert as_table(record).row_count == 3


def test_the_peak_counts_from_here():
    held = bytearray(b"x") * (64 << 20)
    del held
    before = memory.count_from_here()
    held = bytearray(b"x") * (32 << 20)
    growth = memory.peak_bytes() - before
    assert 30 << 20 < growth < 60 << 20, "an earlier peak still counts, or the 32 MiB do not"
    del held


def test_a_measurement_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)'ACmix' failed with code 1.*must be divisible by num_heads"):
        measure(MemoryCase(channels=6), layers=("ACmix",), processes=1)


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="layers must be among"):
        measure(SMALL, layers=("Conv3d",), processes=1)
