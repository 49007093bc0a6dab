"""Which part of what operator a product belongs to."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convattn import ACmix, XVolution
from convattn.cost import count
from convattn.cost.operators import find_operators
from convattn.layers import LocalAttention2d
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.timm_operators import BottleneckAttention2d, TimmOperator2d

SIZE = (16, 14, 12)
PIXELS = 14 * 12

COMPARED = {
    "augmented": (lambda: AugmentedConv2d(16, 16), 9 * 16 * (16 - 4) + 16 * (2 * 80 + 4)),
    "bottleneck": (lambda: BottleneckAttention2d(16, 16), 3 * 16 * 16),
    "involution": (lambda: Involution2d(16, 16), 16 * 4),
    "local relation": (lambda: LocalRelation2d(16, 16), 16 * 4),
    "local attention": (lambda: LocalAttention2d(16, 16), 3 * 16 * 16),
    "lambda": (lambda: TimmOperator2d(16, 16, kind="lambda"), 16 * (4 * 16 + 16 + 4)),
}


@pytest.mark.parametrize("name", COMPARED)
def test_comparison_operators(name):
    make, first = COMPARED[name]
    cost = count(make(), SIZE)
    (operator,) = cost.operators
    assert operator.macs["attention"] > 0
    assert cost.macs == sum(operator.macs.values()), "a drop-in is an operator as a whole"
    assert cost.parameters == sum(operator.parameters.values())
    if name in ("augmented", "bottleneck", "local attention"):
        assert operator.macs["stage I"] == first * PIXELS


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("shift", ["learnable", "random", "single", "single-random", "fixed", "tensor"])
def test_acmix_by_path(heads, shift):
    cost = count(ACmix(16, 16, num_heads=heads, shift=shift), SIZE)
    outputs = 16 if shift in ("learnable", "random") else 0 if shift == "tensor" else 16 // heads
    assert cost.macs_by_path == {
        "stage I": 3 * 16 * 16 * PIXELS,
        "attention": 2 * 49 * 16 * PIXELS,
        "fc": 27 * 16 * PIXELS,
        "group convolution": 81 * outputs * PIXELS,
        "rest": 0,
    }
    assert cost.parameters_by_path["fc"] == 27 * heads
    assert cost.parameters_by_path["group convolution"] == (0 if shift in ("tensor", "fixed") else 81 * outputs)
    assert cost.parameters_by_path["rest"] == 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", ["grouped", "dense", "unfused"])
def test_what_reparameterize_leaves_keeps_its_paths(form, stride):
    layer = ACmix(16, 16, stride=stride)
    before = {c: count(layer, SIZE, convention=c).macs_by_path for c in ("counted", "published")}
    layer.reparameterize(form)
    outputs = PIXELS // stride**2
    path = {"grouped": 9 * 3 * 4 * 16, "dense": 9 * 16 * 16, "unfused": 81 * 16}[form] * outputs
    for convention, was in before.items():
        cost = count(layer, SIZE, convention=convention)
        assert cost.macs_by_path["stage I"] == was["stage I"]
        assert cost.macs_by_path["attention"] == was["attention"]
        assert cost.macs_by_path["fc"] == (was["fc"] if form == "unfused" else 0)
        # a bias before the zero border costs no more than one more channel of ones
        assert path <= cost.macs_by_path["group convolution"] <= path + (9 * 16 * outputs if form == "dense" else 0)
        assert cost.macs_by_path["rest"] == 0


def test_scaled_dot_product_attention_is_counted_once_with_and_without_a_mask():
    class Attention(nn.Module):
        def __init__(self, masked):
            super().__init__()
            self.qkv, self.proj, self.masked = nn.Linear(8, 24), nn.Linear(8, 8), masked

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, 2))
            mask = torch.zeros(tokens.shape[1], tokens.shape[1], device=x.device) if self.masked else None
            return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    for masked in (False, True):
        (operator,) = count(Attention(masked), (8, 5, 4)).operators
        assert operator.macs == {
            "stage I": 20 * 8 * 24,
            "attention": 2 * 20 * 20 * 8 + 20 * 8 * 8,
            "fc": 0,
            "group convolution": 0,
        }


def test_operators_are_found_once_and_in_order():
    net = nn.Sequential(ACmix(4, 4), nn.Conv2d(4, 4, 3), nn.Sequential(LocalAttention2d(4, 4)))
    assert [found.name for found in find_operators(net)] == ["0", "2.0"]
    assert [found.name for found in find_operators(ACmix(4, 4))] == [""]


def test_every_bottleneck_of_a_plain_resnet_has_one():
    with torch.device("meta"):
        names = [found.name for found in find_operators(timm.create_model("resnet26"))]
    assert names == [f"layer{stage}.{block}.conv2" for stage in (1, 2, 3, 4) for block in (0, 1)]


def test_a_projection_past_its_module_leaves_the_network_undivided():
    with torch.device("meta"):
        net = timm.create_model("beit_base_patch16_224", depth=1)
    cost = count(net)
    assert cost.operators == ()
    assert cost.macs_by_path["rest"] == cost.macs > 0


def test_an_operator_that_is_never_called_costs_nothing():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 4, 1), ACmix(4, 4)

        def forward(self, x):
            return self.used(x)

    cost = count(Idle(), (3, 5, 5))
    assert cost.macs == 3 * 4 * 25
    assert cost.parameters_by_path["stage I"] == 3 * 4 * 4 + 3 * 4


def test_no_weight_is_copied_or_changed():
    net = nn.Sequential(ACmix(4, 8), nn.BatchNorm2d(8))
    before = {name: (value.data_ptr(), value.clone()) for name, value in net.state_dict().items()}
    count(net, (4, 6, 6))
    after = net.state_dict()
    assert all(after[name].data_ptr() == where and after[name].equal(was) for name, (where, was) in before.items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype(dtype):
    assert count(ACmix(8, 8, dtype=dtype), (8, 9, 9)).macs == count(ACmix(8, 8), (8, 9, 9)).macs


def test_an_image_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"ACmix cannot be counted on an image of \(5, 9, 9\) .*4 channels|\[B, 4"):
        count(ACmix(4, 4), (5, 9, 9))


def test_flops_are_twice_the_multiply_adds():
    cost = count(nn.Conv2d(3, 4, 1), (3, 5, 5))
    assert (cost.macs, cost.flops) == (300, 600)


@pytest.mark.parametrize("attention", ["pssa", "global", "involution"])
def test_xvolution_by_path(attention):
    """34 C² products a pixel for the branches, the attention's projections with them, and its own work apart."""
    channels, pixels = 16, 9 * 7
    cost = count(XVolution(channels, channels, attention=attention), (channels, 9, 7))
    inside = count(XVolution(channels, channels, attention=attention).attention, (channels, 9, 7))
    assert cost.macs_by_path["stage I"] == 34 * channels**2 * pixels + inside.macs_by_path["stage I"]
    assert cost.macs_by_path["attention"] == inside.macs_by_path["attention"] > 0
    assert cost.macs_by_path["rest"] == 0
