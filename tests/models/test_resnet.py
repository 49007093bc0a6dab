import pytest
import timm
import torch

import convattn
from convattn import ACmix, LocalAttention2d
from convattn.ops import one_hot_kernel

SMALL = {"stem": "small", "channels": (8, 16, 24, 32), "num_classes": 5}


OPERATORS = {"conv": torch.nn.Conv2d, "sasa": LocalAttention2d, "acmix": ACmix}


@pytest.mark.parametrize(
    "name", [name for name in convattn.models.resnet.default_cfgs if name.split("_")[0] in OPERATORS]
)
def test_every_name_is_in_timms_registry_and_runs_on_any_size(name):
    net = timm.create_model(name, **SMALL, in_chans=1, drop_path_rate=0.1)
    for size in [(1, 1), (17, 30)]:
        assert net.eval()(torch.randn(2, 1, *size)).shape == (2, 5)
    assert isinstance(net.layer1[0].conv2, OPERATORS[name.split("_")[0]])


def test_timms_own_names_stay_timms():
    assert [
        len(stage) for stage in timm.create_model("resnet26").children() if isinstance(stage, torch.nn.Sequential)
    ] == [2, 2, 2, 2]
    assert [len(getattr(convattn.models.resnet26(), f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 4, 1]


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("stride_place", ["operator", "projection"])
def test_features_measure_what_feature_info_says(stem, stride_place):
    net = timm.create_model(
        "acmix_resnet14",
        features_only=True,
        out_indices=(1, 2, 3, 4),
        stem=stem,
        stride_place=stride_place,
        channels=(8, 16, 24, 32),
    )
    size = (64, 96)
    features = net(torch.randn(1, 3, *size))
    assert [f.shape[1] for f in features] == net.feature_info.channels() == [32, 64, 96, 128]
    reductions = net.feature_info.reduction()
    assert reductions == [r // (4 if stem == "small" else 1) for r in (4, 8, 16, 32)]
    assert [tuple(f.shape[-2:]) for f in features] == [(size[0] // r, size[1] // r) for r in reductions]


def test_stride_stands_where_asked():
    strides = {
        place: timm.create_model("acmix_resnet14", stride_place=place, **SMALL).layer2[0]
        for place in ("operator", "projection")
    }
    assert strides["operator"].conv1.stride == (1, 1)
    assert strides["operator"].conv2.attention.neighborhood.stride == (2, 2)
    assert strides["projection"].conv1.stride == (2, 2)
    assert strides["projection"].conv2.attention.neighborhood.stride == (1, 1)


def test_output_stride_dilates_the_operators():
    net = timm.create_model("acmix_resnet14", output_stride=8, channels=(8, 16, 24, 32), num_classes=0, global_pool="")
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 128, 8, 8)
    assert net.layer4[0].conv2.convolution.dilation == (2, 2)


def test_shift_initialisation_survives():
    net = timm.create_model("acmix_resnet26", channels=(8, 16, 24, 32))
    for module in net.modules():
        if isinstance(module, ACmix):
            kernel = module.convolution.kernel.detach()
            assert torch.equal(kernel, one_hot_kernel(3).expand_as(kernel))


def test_ablation_switches_reach_every_operator():
    net = timm.create_model("acmix_resnet14", operator_args={"shift": "tensor", "mix": "sum", "num_heads": 2}, **SMALL)
    operators = [m for m in net.modules() if isinstance(m, ACmix)]
    assert {(m.convolution.shift, m.mix.kind, m.convolution.num_heads) for m in operators} == {("tensor", "sum", 2)}


def test_no_weight_decay_names_every_rate():
    net = timm.create_model("acmix_resnet14", **SMALL)
    expected = {f"layer{i}.0.conv2.mix.{rate}" for i in (1, 2, 3, 4) for rate in ("alpha", "beta")}
    assert net.no_weight_decay() == expected


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    net = timm.create_model("acmix_resnet14", **SMALL).eval()
    x = torch.randn(2, 3, 12, 12)
    net(x).sum().backward()
    plain = net.conv1.weight.grad.clone()
    net.set_grad_checkpointing()
    net.zero_grad()
    net(x).sum().backward()
    torch.testing.assert_close(net.conv1.weight.grad, plain)


def test_export_of_a_network_with_dynamic_batch_and_size():
    net = timm.create_model("acmix_resnet14", **SMALL).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=33), 3: torch.export.Dim("w", min=33)}
    program = torch.export.export(net, (torch.randn(2, 3, 40, 48),), dynamic_shapes={"x": free})
    x = torch.randn(3, 3, 37, 65)
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
        ({"stride_place": "first"}, "stride_place must be 'operator' or 'projection', got 'first'"),
        ({"stem": "small", "stem_type": "deep"}, "leave stem_type at its default"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("acmix_resnet14", **options)
