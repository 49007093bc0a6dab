import pytest
import torch
from torch import nn

from benchmarks import peak
from benchmarks.memory import MemoryCase, bytes_kept, measure

SMALL = MemoryCase(batch=2, channels=16, height=24, width=24)
MAP = 2 * 16 * 24 * 24 * 4  # bytes of one such map


def test_storages_are_counted_once_and_parameters_not_at_all():
    x = torch.randn(2, 16, 24, 24, requires_grad=True)
    assert bytes_kept(nn.Conv2d(16, 16, 3), x) == MAP
    assert bytes_kept(nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3)), x) == MAP, "the ReLU's output is shared"
    assert bytes_kept(nn.Sequential(nn.Sigmoid(), nn.Tanh()), x) == 2 * MAP


def test_the_peak_counts_from_here():
    held = bytearray(b"x") * (64 << 20)
    del held
    growth = peak.growth(lambda: bytearray(b"x") * (32 << 20))
    assert 30 << 20 < growth < 60 << 20, "an earlier peak still counts, or the 32 MiB do not"


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="layers must be among"):
        measure(SMALL, layers=("Conv3d",), processes=1)
