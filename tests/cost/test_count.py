"""The papers' numbers, counted on meta tensors."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn import ACmix, ops
from convattn.cost import count
from convattn.ops import Neighborhood

RESNETS = {
    "conv_resnet26": (13.70, 2.34),
    "conv_resnet38": (19.63, 3.22),
    "conv_resnet50": (25.56, 4.09),
}
ACMIX = {
    "acmix_resnet26": (10.488, 2.268),
    "acmix_resnet38": (14.411, 2.911),
    "acmix_resnet50": (18.334, 3.554),
}


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize("name", RESNETS)
def test_plain_resnets(name):
    cost = count(on_meta(name))
    assert (round(cost.parameters / 1e6, 2), round(cost.macs / 1e9, 2)) == RESNETS[name]


@pytest.mark.parametrize("name", ACMIX)
def test_acmix_resnets(name):
    """The counted targets hold what the authors' position layer adds and ours leaves out because it has no effect.

    That is its bias, head_dim numbers an operator, which cancels in the softmax, and the product of two coordinates
    with the weight at every pixel, 2 * head_dim * H * W, which ours takes apart into rows and columns.
    """
    net = on_meta(name)
    cost = count(net, convention="published")
    sizes = iter([56] * len(net.layer1) + _sizes(net.layer2, 56) + _sizes(net.layer3, 28) + _sizes(net.layer4, 14))
    operators = [m for m in net.modules() if isinstance(m, ACmix)]
    bias = sum(m.out_channels // 4 for m in operators)
    coordinates = sum(2 * (m.out_channels // 4) * size**2 for m, size in zip(operators, sizes, strict=True))
    parameters, macs = ACMIX[name]
    assert round((cost.parameters + bias) / 1e6, 3) == parameters
    assert round((cost.macs + coordinates) / 1e9, 3) == macs
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.0015)
    assert cost.macs / 1e9 == pytest.approx(macs, abs=0.0015)


def _sizes(layer, entry):
    return [entry] + [entry // 2] * (len(layer) - 1)


@pytest.mark.parametrize("depth", [26, 38, 50])
def test_sasa_resnets_are_acmix_without_the_convolution_path(depth):
    acmix = count(on_meta(f"acmix_resnet{depth}"), convention="published")
    sasa = count(on_meta(f"sasa_resnet{depth}"), convention="published")
    assert sasa.macs == acmix.macs - acmix.macs_by_stage["stage II convolution"]
    assert sasa.parameters_by_stage["stage I"] == acmix.parameters_by_stage["stage I"]
    assert sasa.parameters_by_stage["rest"] == acmix.parameters_by_stage["rest"] - 2 * _operators(depth)


def _operators(depth):
    return sum(isinstance(m, ACmix) for m in on_meta(f"acmix_resnet{depth}").modules())


def test_table_1_of_the_paper():
    """ResNet-50: attention I 0.963 G, II 0.187; ACmix II 0.350 of which fc 0.0515 and group convolution 0.112."""
    cost = count(on_meta("acmix_resnet50"), convention="published")
    stages = {stage: macs / 1e9 for stage, macs in cost.macs_by_stage.items()}
    assert round(stages["stage I"], 3) == 0.963
    assert round(stages["stage II attention"], 3) == 0.187
    assert round(stages["stage II attention"] + stages["stage II convolution"], 3) == 0.350
    assert stages["stage II convolution"] == pytest.approx(0.0515 + 0.112, abs=0.001)
    assert round(cost.parameters_by_stage["stage I"] / 1e6, 1) == 3.8
    assert sum(cost.macs_by_stage.values()) == cost.macs
    assert sum(cost.parameters_by_stage.values()) == cost.parameters


@pytest.mark.parametrize("stride", [1, 2])
def test_one_operator_by_the_formulas_of_table_1(stride):
    channels, heads, height, width = 16, 4, 12, 10
    inside, outside = height * width, (height // stride) * (width // stride)
    layer = ACmix(channels, channels, num_heads=heads, stride=stride)
    counted = count(layer, (channels, height, width)).macs_by_stage
    published = count(layer, (channels, height, width), convention="published").macs_by_stage
    assert counted["stage I"] == 3 * channels**2 * inside
    assert counted["stage II attention"] == 2 * 49 * channels * outside
    assert published["stage II attention"] == 2 * 49 * channels * inside
    assert counted["stage II convolution"] == 3 * 9 * channels * inside + 9 * 9 * channels * outside


def test_table_position_is_counted_and_not_published():
    layer = ACmix(16, 16, position="table")
    plain = ACmix(16, 16, position=None)
    size = (16, 8, 8)
    assert count(layer, size).macs - count(plain, size).macs == 49 * 16 * 64
    assert count(layer, size, convention="published").macs == count(plain, size, convention="published").macs


def test_any_flop_counter_knows_the_operators_forward_and_backward():
    q, k, v = (torch.randn(1, 4, 5, 5, requires_grad=True) for _ in range(3))
    nbhd, products = Neighborhood.window(3), 4 * 25 * 9
    with FlopCounterMode(display=False) as counter:
        ops.attend(q, k, v, nbhd).sum().backward()
    assert counter.get_total_flops() == 2 * products * (2 + 5)
    with FlopCounterMode(display=False) as counter:
        ops.aggregate(ops.correlate(q, k, nbhd), v, nbhd).sum().backward()
    assert counter.get_total_flops() == 2 * products * 6


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(ACmix(4, 8), nn.BatchNorm2d(8)).train()
    count(net, (4, 6, 6))
    assert net.training
    assert next(net.parameters()).device.type == "cpu"


def test_unknown_convention_is_named():
    with pytest.raises(ValueError, match=r"convention must be one of \('counted', 'published'\), got 'papers'"):
        count(ACmix(4, 4), (4, 5, 5), convention="papers")
