"""Parameters and multiply-adds, beside those that torch counts."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from convattn.layers.spatial_reduction import SpatialReductionACmix
from tests.cost.counted import COUNTED


@pytest.mark.parametrize("name", [name for name in COUNTED if "swin" in name or "pvt" in name])
def test_as_torch_counts(name):
    """FlopCounterMode, halved: convolutions, linear layers and the products of attention.

    On the meta device torch takes attention apart into its two products. With one head (PVT's first stage) ACmix's
    fully connected layer multiplies a map by numbers, which the counter does not see: 9 multiply-adds for each of q's
    C x H x W elements, 18 for the reduced k and v.
    """
    with torch.device("meta"):
        net = timm.create_model(name).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    first = [block.attn for block in net.stages[0].blocks] if "pvt" in name else []
    unseen = sum(isinstance(operator, SpatialReductionACmix) for operator in first) * 9 * 64 * 56 * 56
    parameters, macs = COUNTED[name]
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=6e-4)
    assert (counter.get_total_flops() / 2 + unseen) / 1e9 == pytest.approx(macs, rel=5e-4)
