import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.utils import reparameterize_model
from torch import nn

from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.models import pvt, vit
from convattn.ops import one_hot_kernel
from tests.drawing import moved

TINY = {"embed_dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1), "num_classes": 5}
NAMES = ["pvt_v1_tiny", "acmix_pvt_tiny"]

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("name", [*pvt.default_cfgs, *vit.default_cfgs])
def test_every_name_is_in_timms_registry(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    kind = SpatialReductionACmix if name.startswith("acmix") else SpatialReductionAttention
    assert {type(block.attn) for stage in net.stages for block in stage.blocks} == {kind}
    assert net.get_classifier().out_features == 1000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_any_size(name, stem):
    net = timm.create_model(name, stem=stem, in_chans=1, drop_path_rate=0.1, **TINY)
    folded = reparameterize_model(moved(net, 0.2).eval())
    for size in [(1, 1), (32, 32), (37, 65), (225, 321)]:
        x = torch.randn(1, 1, *size)
        out = net(x)
        assert out.shape == (1, 5)
        torch.testing.assert_close(folded(x), out, rtol=1e-5, atol=1e-5)


def test_reparameterize_is_exact_and_leaves_no_rates():
    net = moved(timm.create_model("acmix_pvt_tiny", **TINY), 0.2).eval().double()
    folded = reparameterize_model(net)
    assert [stage.blocks[0].attn.reparameterized.form for stage in folded.stages] == ["grouped"] * 4
    assert not any("mix" in name for name in folded.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stem", "strides"), [("imagenet", [4, 8, 16, 32]), ("small", [2, 4, 8, 16])])
@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
def test_features_measure_what_feature_info_says(name, stem, strides, size):
    net = timm.create_model(name, features_only=True, stem=stem, **TINY)
    features = net(torch.randn(1, 3, *size))
    assert [f.shape[1] for f in features] == net.feature_info.channels() == [8, 16, 40, 64]
    assert net.feature_info.reduction() == strides
    assert [tuple(f.shape[-2:]) for f in features] == [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def test_features_come_without_class_token_norm_and_later_stages():
    net = timm.create_model("acmix_pvt_tiny", features_only=True, out_indices=(0, 2), **TINY)
    assert [f.shape[1] for f in net(torch.randn(1, 3, 32, 32))] == [8, 40]
    names = list(net.state_dict())
    assert not any(
        "cls_token" in name or name.startswith(("model.norm", "model.head", "model.stages.3")) for name in names
    )


def test_features_of_a_classifier_leave_its_class_token_out():
    net = moved(timm.create_model("pvt_v1_tiny", **TINY), 0.2).eval()
    x = torch.randn(2, 3, 40, 64)
    tokens, maps = net.forward_intermediates(x, norm=True)
    torch.testing.assert_close(tokens, net.forward_features(x))
    torch.testing.assert_close(maps[3].flatten(2).transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(net.forward_head(tokens), net(x))
    only = net.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(only, [maps[1]])
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW'"):
        net.forward_intermediates(x, output_fmt="NLC")


def test_average_pooling_has_no_class_token():
    net = moved(timm.create_model("pvt_v1_tiny", global_pool="avg", **TINY), 0.2).eval()
    x = torch.randn(2, 3, 32, 64)
    assert net.stages[3].cls_token is None
    assert net.forward_features(x).shape == (2, 2, 64)
    torch.testing.assert_close(net(x), net.head(net.forward_features(x).mean(1)))


def test_classifier_can_be_replaced():
    net = timm.create_model("pvt_v1_tiny", **TINY)
    net.reset_classifier(7)
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    net.reset_classifier(0, "token")
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 64)
    with pytest.raises(ValueError, match="global_pool must be 'token', got 'avg'; build the network anew"):
        net.reset_classifier(7, "avg")


def test_position_embeddings_at_their_own_size_are_the_table():
    for name in ("pvt_v1_tiny", "acmix_pvt_tiny"):
        net = timm.create_model(name, img_size=(64, 96), **TINY)
        for stage, grid in zip(net.stages, [(16, 24), (8, 12), (4, 6), (2, 3)], strict=True):
            assert stage.grid == grid
            assert torch.equal(stage.position(grid), stage.pos_embed)
            assert stage.position((5, 3)).shape[1] == 15 + stage.num_prefix_tokens


def test_initialisation_as_published():
    net = timm.create_model("acmix_pvt_tiny", **TINY)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert 0.015 < module.weight.std() < 0.025
            assert not module.bias.any()
        elif isinstance(module, SpatialReductionACmix):
            kernel = module.convolution.kernel.detach()
            assert torch.equal(kernel, one_hot_kernel(3).expand_as(kernel))
            assert [rate.item() for rate in module.mix.rates()] == [0.5, 0.5]
    for stage in net.stages:
        assert 0.015 < stage.pos_embed.std() < 0.025


def test_ablation_switches_reach_every_operator():
    net = timm.create_model("acmix_pvt_tiny", operator_args={"shift": "tensor", "mix": "sum", "kernel_size": 5}, **TINY)
    operators = [m for m in net.modules() if isinstance(m, SpatialReductionACmix)]
    assert {(m.convolution.shift, m.mix.kind, m.convolution.kernel_size) for m in operators} == {
        ("tensor", "sum", (5, 5))
    }


def test_stochastic_depth_rises_linearly():
    net = timm.create_model("pvt_v1_tiny", drop_path_rate=0.3, **TINY)
    rates = [getattr(stage.blocks[0].drop_path2, "drop_prob", 0.0) for stage in net.stages]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    net.train()(torch.randn(2, 3, 32, 32)).sum().backward()


def test_no_weight_decay_and_groups():
    net = timm.create_model("acmix_pvt_tiny", **TINY)
    rates = {f"stages.{i}.blocks.0.attn.mix.{rate}" for i in range(4) for rate in ("alpha", "beta")}
    tables = {f"stages.{i}.pos_embed" for i in range(4)}
    assert net.no_weight_decay() == rates | tables | {"stages.3.cls_token"}
    assert rates <= set(dict(net.named_parameters()))
    for coarse in (True, False):
        groups = group_parameters(net, net.group_matcher(coarse=coarse))
        assert sorted(name for names in groups.values() for name in names) == sorted(dict(net.named_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_nothing(name):
    net = moved(timm.create_model(name, **TINY), 0.2).eval()
    x = torch.randn(2, 3, 40, 33)
    weight = torch.randn(2, 5)
    plain = torch.autograd.grad((net(x) * weight).sum(), list(net.parameters()))
    net.set_grad_checkpointing()
    again = torch.autograd.grad((net(x) * weight).sum(), list(net.parameters()))
    torch.testing.assert_close(again, plain)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["trained", "reparameterized"])
@pytest.mark.parametrize("name", NAMES)
def test_export_with_dynamic_batch_and_size(name, form):
    net = moved(timm.create_model(name, **TINY), 0.2).eval()
    if form == "reparameterized":
        net = reparameterize_model(net)
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=33), 3: torch.export.Dim("w", min=33)}
    program = torch.export.export(net, (torch.randn(2, 3, 40, 48),), dynamic_shapes={"x": free})
    for shape in [(3, 3, 37, 65), (2, 3, 64, 64), (2, 3, 224, 225)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name):
    net = moved(timm.create_model(name, **TINY), 0.2).eval()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(2, 3, 40, 48), (3, 3, 33, 65)]:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_layouts_and_empty_batches(name):
    net = moved(timm.create_model(name, **TINY), 0.2).eval()
    x = torch.randn(2, 3, 40, 33)
    expected = net(x)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(x), expected, rtol=1e-4, atol=1e-5)
    assert net(x[:0]).shape == (0, 5)
    for dtype in (torch.float16, torch.bfloat16):
        out = copy.deepcopy(net).to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (net(x).float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
        ({"global_pool": "max"}, "global_pool must be 'token' or 'avg', got 'max'"),
        ({"depths": (1, 1)}, r"depths must have a number for each of the 4 stages, got \(1, 1\)"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("pvt_v1_tiny", **options)


def test_bad_images_are_named():
    with pytest.raises(ValueError, match=r"must be \[B, 3, H, W\] of a pixel at least, got \[1, 1, 32, 32\]"):
        timm.create_model("pvt_v1_tiny", **TINY)(torch.zeros(1, 1, 32, 32))
