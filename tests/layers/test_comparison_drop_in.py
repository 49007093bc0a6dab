"""Wherever the convolution worked, the operators that the papers compare with work."""

from functools import partial

import pytest
import torch

from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.timm_operators import BottleneckAttention2d
from tests.layers.drop_in import DropIn, check_compiled, kept_bytes
from tests.quick import slow_but

LAYERS = {
    "local-relation": partial(LocalRelation2d, channels_per_group=2),
    "local-relation-absolute": partial(LocalRelation2d, composability="absolute_difference"),
    "local-relation-product": partial(LocalRelation2d, composability="product"),
    "augmented": AugmentedConv2d,
    "augmented-alone": partial(AugmentedConv2d, value_ratio=1.0, position=None),
    "bottleneck": partial(BottleneckAttention2d, feature_size=4),
    "involution": partial(Involution2d, channels_per_group=4),
}


@pytest.fixture(params=LAYERS, ids=str)
def make(request):
    """In evaluation: involution has a batch norm, which ties the images of a batch in training."""
    torch.manual_seed(0)
    return lambda *args, **options: LAYERS[request.param](*args, **options).eval()


class TestDropIn(DropIn):
    """With the contract of every operator."""


@pytest.mark.parametrize("name", slow_but(["augmented"], ["local-relation", "augmented", "involution"]))
def test_compiles_without_a_graph_break(name):
    torch.manual_seed(0)
    check_compiled(LAYERS[name](4, 8, stride=2).eval(), "aot_eager")


@pytest.mark.parametrize("operator", [LocalRelation2d, Involution2d])
def test_no_window_of_the_values_is_kept_for_backward(operator):
    """The weights, a number for each tap and group, are kept; the values of every tap, 49 maps, are not."""
    channels, size = 64, 14
    layer, x = operator(channels, channels), torch.randn(1, channels, size, size, requires_grad=True)
    maps = kept_bytes(layer, x) / (4 * channels * size * size)
    weights = {LocalRelation2d: 49 / 8, Involution2d: 49 / 16}[operator]
    assert maps < weights + 6
