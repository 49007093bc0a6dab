"""Operators in the ResNets: where they stand, on what they run, and the parameters that papers give."""

import pickle

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock

import convattn
from convattn import ACmix
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.timm_operators import BottleneckAttention2d, TimmOperator2d
from convattn.models import resnet
from tests.quick import slow_but

SMALL = {"stem": "small", "channels": (8, 16, 24, 32), "num_classes": 5}
OPERATORS = {
    "lr": LocalRelation2d,
    "aa": AugmentedConv2d,
    "bot": BottleneckAttention2d,
    "involution": Involution2d,
    "halo": TimmOperator2d,
    "lambda": TimmOperator2d,
}


def where(net, operator):
    """The stages that have the operator in every block and those that have it in some, which must be the same."""
    stages = [getattr(net, f"layer{i}") for i in (1, 2, 3, 4)]
    everywhere = [i for i, s in enumerate(stages, 1) if all(isinstance(b.conv2, operator) for b in s)]
    anywhere = [i for i, s in enumerate(stages, 1) if any(isinstance(m, operator) for m in s.modules())]
    assert everywhere == anywhere
    return everywhere


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_kind_runs_on_any_size_where_its_source_has_it(kind):
    net = timm.create_model(f"{kind}_resnet26", **SMALL, in_chans=1, drop_path_rate=0.1).eval()
    for size in [(1, 1), (17, 30)]:
        assert net(torch.randn(2, 1, *size)).shape == (2, 5)
    assert where(net, OPERATORS[kind]) == {"aa": [2, 3, 4], "bot": [4]}.get(kind, [1, 2, 3, 4])


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_kind_learns(kind):
    torch.manual_seed(0)
    net = timm.create_model(f"{kind}_resnet14", **SMALL)
    x, y = torch.randn(8, 3, 12, 12), torch.arange(8) % 5
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", OPERATORS)
def test_features_measure_what_feature_info_says(kind):
    options = {"features_only": True, "out_indices": (1, 2, 3, 4), "channels": (8, 16, 24, 32)}
    net = timm.create_model(f"{kind}_resnet14", **options).eval()
    features = net(torch.randn(1, 3, 64, 96))
    assert [f.shape[1] for f in features] == net.feature_info.channels() == [32, 64, 96, 128]
    assert net.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(f.shape[-2:]) for f in features] == [(64 // r, 96 // r) for r in (4, 8, 16, 32)]


@pytest.mark.parametrize("kind", slow_but(["aa", "bot"], ["lr", "aa", "bot", "involution"]))
def test_export_with_dynamic_batch_and_size(kind):
    net = timm.create_model(f"{kind}_resnet14", **SMALL).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=33), 3: torch.export.Dim("w", min=33)}
    program = torch.export.export(net, (torch.randn(2, 3, 40, 48),), dynamic_shapes={"x": free})
    x = torch.randn(3, 3, 37, 45)
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("stages", [(), (3,), (2, 4), [1], None], ids=str)
def test_the_operator_stands_in_the_stages_asked_for(stages):
    net = timm.create_model("acmix_resnet26", stages=stages, **SMALL)
    assert where(net, ACmix) == list((1, 2, 3, 4) if stages is None else stages)
    assert net.eval()(torch.randn(1, 3, 9, 9)).shape == (1, 5)


@pytest.mark.parametrize("stages", [(5,), (0,), (3, "layer4")], ids=str)
def test_a_stage_that_is_not_there_is_named(stages):
    with pytest.raises(ValueError, match=r"stages must lie between 1 \(layer1, conv2_x\) and 4 \(layer4\), got \["):
        timm.create_model("acmix_resnet14", stages=stages)


@pytest.mark.parametrize("stride_place", ["operator", "projection"])
def test_basic_blocks_give_up_their_last_convolution(stride_place):
    net = timm.create_model(
        "acmix_resnet14", block=BasicBlock, layers=(1, 2, 1, 1), stages=(2, 4), stride_place=stride_place, **SMALL
    ).eval()
    assert where(net, ACmix) == [2, 4]
    assert all(type(block.conv1) is torch.nn.Conv2d for block in net.layer2)
    assert [block.conv1.stride for block in net.layer2] == [(2, 2), (1, 1)]
    assert net.layer2[0].conv2.attention.neighborhood.stride == (1, 1)
    assert net(torch.randn(1, 3, 17, 9)).shape == (1, 5)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_plain_networks_are_timms(depth):
    theirs, ours = timm.create_model(f"resnet{depth}"), timm.create_model(f"conv_resnet{depth}")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 40, 33)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("name", "options", "published", "tolerance"),
    [
        ("aa_resnet50", {}, 25.8, 0.002),
        ("bot_resnet50", {}, 20.8, 0.005),
        # RedNet's stem holds an involution, ours is ResNet's convolution: 0.01 M less.
        ("involution_resnet26", {}, 9.2, 0.005),
        ("involution_resnet38", {}, 12.4, 0.005),
        ("involution_resnet50", {}, 15.5, 0.005),
        # LR-Net's stem is a local relation layer, and the geometric prior's hidden width is open.
        ("lr_resnet26", {"base_width": 100, "layers": (2, 2, 2, 2)}, 14.7, 0.01),
        ("lr_resnet50", {"base_width": 100}, 23.3, 0.005),
    ],
)
def test_published_parameters(name, options, published, tolerance):
    with torch.device("meta"):
        net = timm.create_model(name, **options)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(published, rel=tolerance)


def test_options_reach_the_operators():
    net = timm.create_model("lr_resnet14", operator_args={"composability": "product", "kernel_size": 3}, **SMALL)
    operators = [m for m in net.modules() if isinstance(m, LocalRelation2d)]
    assert {(m.composability, len(m.neighborhood)) for m in operators} == {("product", 9)}


def test_every_name_is_a_documented_builder_of_its_own():
    names = [f"{name}_resnet{depth}" for name, kind in resnet.KINDS.items() for depth in kind.depths]
    for name in names:
        builder = getattr(resnet, name)
        assert (builder.__name__, builder.__module__) == (name, "convattn.models.resnet")
        assert builder is timm.models.model_entrypoint(name)
        assert f"ResNet-{name[-2:]} with " in builder.__doc__
        assert name in resnet.__all__
        assert pickle.loads(pickle.dumps(builder)) is builder
    assert set(names) == set(resnet.default_cfgs) <= set(convattn.models.list_models())
