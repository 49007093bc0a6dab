import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from convattn import ACmix
from convattn.layers.pairwise import PairwiseAttention2d
from convattn.layers.patchwise import PatchwiseAttention2d
from convattn.models import san
from convattn.models.san import SAN
from convattn.optimize import optimize
from tests.quick import slow_but

NAMES = [f"{kind}san{depth}" for kind in ("", "pairwise_", "acmix_") for depth in (10, 15, 19)]
TINY = {"layers": (1, 1, 1, 1, 1), "widths": (16, 32, 32, 48, 64), "num_classes": 5}


def tiny(name="acmix_san10", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **(TINY | options))


def draw_statistics(net):
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, -0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.4)
    return net.eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_in_timms_registry(name):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1)
    assert type(net) is SAN
    assert tuple(len(stage.blocks) for stage in net.stages) == san.LAYERS[int(name[-2:])]
    operators = {"acmix": ACmix, "pairwise": PairwiseAttention2d}
    operator = operators.get(name.partition("_")[0], PatchwiseAttention2d)
    for stage, kernel, width in zip(net.stages, (3, 7, 7, 7, 7), (64, 256, 512, 1024, 2048), strict=True):
        block = stage.blocks[0]
        assert type(block.attn) is operator
        assert (block.attn.attention.kernel_size, block.attn.attention.share) == ((kernel, kernel), 8)
        assert (block.attn.split, block.attn.out_channels) == ((width // 16, width // 16, width // 4), width // 4)
    assert net.stages[4].blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
    assert net.fc.out_features == 7


@pytest.mark.parametrize("name", ["san10", "pairwise_san10", "acmix_san10"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_runs_on_any_size(name, stem):
    net = tiny(name, stem=stem, in_chans=1).eval()
    for size in [(1, 1), (2, 37), (32, 32), (33, 31), (225, 321)] if stem == "imagenet" else [(1, 1), (32, 32)]:
        x = torch.randn(1, 1, *size)
        expected = net(x).detach()
        assert expected.shape == (1, 5)
        with torch.no_grad():
            torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 50), (65, 49), (7, 3), (1, 9), (2, 2)])
@pytest.mark.parametrize("budget", [1, 30000])
def test_a_stem_in_bands_changes_nothing(size, budget, monkeypatch):
    monkeypatch.setattr(san, "working_set_bytes", lambda device: budget)
    net, x = draw_statistics(tiny("san10")), torch.randn(2, 3, *size)
    with torch.no_grad():
        found = net(x)
        calls = []
        for module in (net.conv_in, net.stages[1]):
            module.register_forward_hook(lambda *args: calls.append(1))
        torch.testing.assert_close(net(x), found)
    assert calls == [1, 1]


@pytest.mark.parametrize(("stem", "reductions"), [("imagenet", [2, 4, 8, 16, 32]), ("small", [1, 1, 2, 4, 8])])
def test_features_measure_what_feature_info_says(stem, reductions):
    net = timm.create_model("acmix_san10", features_only=True, stem=stem, layers=(1,) * 5, widths=TINY["widths"]).eval()
    features = net(torch.randn(1, 3, 64, 96))
    assert [f.shape[1] for f in features] == net.feature_info.channels() == list(TINY["widths"])
    assert net.feature_info.reduction() == reductions
    assert [tuple(f.shape[-2:]) for f in features] == [(64 // r, 96 // r) for r in reductions]
    assert all((f >= 0).all() for f in features)
    some = timm.create_model("san10", features_only=True, out_indices=(1, 3), layers=(1,) * 5, widths=TINY["widths"])
    assert some.feature_info.channels() == [32, 48]
    assert [f.shape[1] for f in some.eval()(torch.randn(1, 3, 32, 32))] == [32, 48]
    assert not any("stages.4" in name for name, _ in some.named_parameters())


def test_intermediates_end_with_the_features():
    net, x = tiny().eval(), torch.randn(1, 3, 40, 40)
    last, maps = net.forward_intermediates(x, indices=2)
    assert [m.shape[1] for m in maps] == [48, 64]
    torch.testing.assert_close(last, maps[-1])
    torch.testing.assert_close(net.forward_features(x), last)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        net.forward_intermediates(x, output_fmt="NLC")


def test_classifier_is_replaced_and_taken_out():
    net, x = tiny().eval(), torch.randn(2, 3, 32, 32)
    assert net.get_classifier() is net.fc
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, 64)
    net.reset_classifier(3)
    assert (net.num_classes, net(x).shape) == (3, (2, 3))
    net.reset_classifier(0)
    assert net(x).shape == (2, 64)
    with pytest.raises(ValueError, match="global_pool must be 'avg', got 'max'"):
        net.reset_classifier(3, "max")


def test_weight_decay_leaves_the_rates_alone():
    expected = {f"stages.{i}.blocks.0.attn.mix.{rate}" for i in range(5) for rate in ("alpha", "beta")}
    assert tiny().no_weight_decay() == expected
    assert tiny("san10").no_weight_decay() == set()


def test_layer_decay_finds_a_group_for_every_parameter():
    net = tiny()
    optimizer = create_optimizer_v2(net, "sgd", lr=0.1, weight_decay=0.1, layer_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert len(scales) == 7  # the stem, five stages, the head


def test_options_reach_every_operator():
    net = tiny(operator_args={"shift": "fixed", "mix": "sum", "convolution_kernel": 5})
    operators = [m for m in net.modules() if isinstance(m, ACmix)]
    assert {(m.convolution.shift, m.mix.kind, m.convolution.kernel_size) for m in operators} == {
        ("fixed", "sum", (5, 5))
    }


def test_gradient_checkpointing_changes_nothing():
    net, x = draw_statistics(tiny(stem="small")), torch.randn(2, 3, 12, 12)
    net(x).square().sum().backward()
    plain = net.conv_in.weight.grad.clone()
    net.set_grad_checkpointing()
    net.zero_grad()
    net(x).square().sum().backward()
    torch.testing.assert_close(net.conv_in.weight.grad, plain)


@pytest.mark.parametrize("name", ["san10", "acmix_san10"])
def test_a_few_steps_lower_the_loss(name):
    net = tiny(name, stem="small", drop_path_rate=0.1).train()
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", ["san10", "acmix_san10"])
def test_optimized_gives_the_same(name):
    net, x = draw_statistics(tiny(name)), torch.randn(2, 3, 45, 52)
    reports = []
    optimize(net, x, report=reports.append)
    (report,) = reports
    assert report.relative_difference < 1e-4
    assert report.batch_norms["bn_in"] == "conv_in"
    if name.startswith("acmix"):
        assert report.batch_norms["stages.1.blocks.0.norm2"] == "stages.1.blocks.0.attn"


@pytest.mark.parametrize("name", slow_but(["acmix_san10"], ["san10", "acmix_san10"]))
def test_export_with_dynamic_batch_and_size(name):
    net = draw_statistics(tiny(name))
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=64), 3: torch.export.Dim("w", min=64)}
    program = torch.export.export(net, (torch.randn(2, 3, 72, 96),), dynamic_shapes={"x": free})
    x = torch.randn(3, 3, 81, 66)
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
        ({"widths": (16, 32)}, "must have a number for each stage"),
        ({"widths": (16, 32, 32, 40, 64)}, "widths must be multiples of 16"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
