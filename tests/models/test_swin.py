import copy

import pytest
import timm
import torch

import convattn.models.swin as swin
from convattn import ACmix
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from tests.quick import slow_but

TINY = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_classes": 5}
SMALL = TINY | {"stem": "small"}
KINDS = ["swin_tiny", "acmix_swin_tiny", "conv_swin_tiny"]


@pytest.mark.parametrize("name", sorted(swin.default_cfgs))
def test_every_name_is_in_timms_registry_and_runs_on_any_size(name):
    net = timm.create_model(name, **TINY, in_chans=1, drop_path_rate=0.1).eval()
    kind = {"swin": WindowAttention2d, "acmix": ACmix, "conv": torch.nn.Conv2d}[name.split("_")[0]]
    assert all(isinstance(block.attn, kind) for stage in net.layers for block in stage.blocks)
    for size in [(1, 1), (32, 32), (33, 70)]:
        assert net(torch.randn(2, 1, *size)).shape == (2, 5)


@pytest.mark.parametrize("options", [SMALL, TINY, TINY | {"patch_size": 2, "window_size": (4, 3)}])
def test_sizes(options):
    for name, more in [("swin_tiny", {}), ("acmix_swin_tiny", {}), ("acmix_swin_tiny", {"compat": "official"})]:
        net = timm.create_model(name, **options, **more).eval()
        for size in [(32, 32), (57, 44)] + [(225, 321)] * (options is TINY):
            with torch.no_grad():
                assert torch.isfinite(net(torch.randn(1, 3, *size))).all()


def test_windows_keep_their_size_and_every_second_block_is_shifted():
    net = timm.create_model("acmix_swin_tiny", img_size=32, embed_dim=12)
    paths = [block.attn.attention for stage in net.layers for block in stage.blocks]
    assert {path.window_size for path in paths} == {(7, 7)}
    assert [path.shift for path in paths] == [(0, 0), (3, 3)] * 6
    assert [len(stage.blocks) for stage in net.layers] == [2, 2, 6, 2]
    assert [stage.blocks[0].attn.attention.num_heads for stage in net.layers] == [3, 6, 12, 24]


@pytest.mark.parametrize("size", [(56, 56), (112, 56)])
def test_plain_swin_equals_timms(size):
    torch.manual_seed(0)
    options = {"embed_dim": 12, "depths": (2, 2, 1), "num_heads": (3, 6, 12), "num_classes": 5, "window_size": 7}
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, patch_size=2, **options).eval()
    ours = timm.create_model("swin_tiny", patch_size=2, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("stem", "strides"), [("imagenet", [4, 8, 16, 32]), ("small", [1, 2, 4, 8])])
def test_features_measure_what_feature_info_says(stem, strides):
    net = timm.create_model("acmix_swin_tiny", features_only=True, **TINY, stem=stem)
    for size in [(64, 96), (33, 49)]:
        features = net(torch.randn(1, 3, *size))
        assert [f.shape[1] for f in features] == net.feature_info.channels() == [12, 24, 48, 96]
        assert net.feature_info.reduction() == strides
        assert [tuple(f.shape[2:]) for f in features] == [tuple(-(-n // r) for n in size) for r in strides]


def test_out_indices():
    net = timm.create_model("acmix_swin_tiny", features_only=True, out_indices=(1, 2), **SMALL)
    assert [tuple(f.shape) for f in net(torch.randn(1, 3, 16, 16))] == [(1, 24, 8, 8), (1, 48, 4, 4)]


def test_the_classifier_is_timms():
    net = timm.create_model("acmix_swin_tiny", **SMALL)
    assert net.get_classifier().out_features == 5
    net.reset_classifier(3)
    x = torch.randn(2, 3, 16, 16)
    features = net.forward_features(x)
    assert net.forward_head(features).shape == (2, 3)
    assert net.forward_head(features, pre_logits=True).shape == (2, 96)


def test_the_convolution_path_sees_the_map_unrolled_unless_compat_is_official():
    """A change in the last row reaches the first row's neighbourhood only over the roll."""
    for compat, leaks in [(None, False), ("official", True)]:
        net = timm.create_model("acmix_swin_tiny", compat=compat, stem="small", **(TINY | {"depths": (2, 1, 1, 1)}))
        operator = net.layers[0].blocks[1].attn
        torch.nn.init.normal_(operator.convolution.kernel)
        torch.nn.init.zeros_(operator.mix.alpha)
        x = torch.randn(1, 12, 16, 16)
        moved = x.clone()
        moved[:, :, -1] += 1
        change = (operator(moved) - operator(x)).abs().amax((0, 1, 3))
        assert (change[0] > 0) == leaks
        assert change[-1] > 0
        assert change[5] == 0


def test_the_paths_are_the_same_with_either_compat_where_nothing_is_shifted():
    torch.manual_seed(0)
    plain = timm.create_model("acmix_swin_tiny", **SMALL | {"depths": (1, 1, 1, 1)}).eval()
    official = timm.create_model("acmix_swin_tiny", compat="official", **SMALL | {"depths": (1, 1, 1, 1)}).eval()
    official.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 21, 33)
    torch.testing.assert_close(official(x), plain(x))


@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_attention_of_a_rolled_map_is_rolled_attention(size):
    paths = [kind(8, window_size=4, num_heads=2, shift=2) for kind in (WindowAttention, swin.RolledWindowAttention)]
    paths[1].load_state_dict(paths[0].state_dict())
    inputs = [torch.randn(2, 8, *size) for _ in range(3)]
    rolled = paths[1](*(torch.roll(part, (-2, -2), (2, 3)) for part in inputs))
    torch.testing.assert_close(torch.roll(rolled, (2, 2), (2, 3)), paths[0](*inputs))


@pytest.mark.parametrize("compat", [None, "official"])
def test_reparameterize_is_exact(compat):
    net = timm.create_model("acmix_swin_tiny", compat=compat, **SMALL).eval()
    for module in net.modules():
        if isinstance(module, ACmix):
            torch.nn.init.normal_(module.convolution.kernel, std=0.1)
    x = torch.randn(2, 3, 17, 22)
    with torch.no_grad():
        before = net(x)
        merged = timm.utils.reparameterize_model(copy.deepcopy(net))
        torch.testing.assert_close(merged(x), before, rtol=1e-4, atol=1e-5)


def test_no_weight_decay_names_tables_and_rates():
    net = timm.create_model("acmix_swin_tiny", **SMALL)
    blocks = [f"layers.{i}.blocks.{j}.attn" for i, depth in enumerate(SMALL["depths"]) for j in range(depth)]
    names = ("attention.relative_position_bias_table", "mix.alpha", "mix.beta")
    assert net.no_weight_decay() == {f"{block}.{name}" for block in blocks for name in names}
    assert net.no_weight_decay() <= set(net.state_dict())


def test_every_weight_starts_as_swins_and_as_shifts():
    net = timm.create_model("acmix_swin_tiny", embed_dim=48, depths=(1, 1, 1, 1))
    for _ in range(2):
        for module in net.modules():
            if isinstance(module, ACmix):
                assert module.projection.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert not module.projection.bias.any()
                assert module.convolution.kernel.unique().tolist() == [0, 1]
                assert not module.attention.proj.bias.any()
        net.init_weights()


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    net = timm.create_model("acmix_swin_tiny", **SMALL).eval()
    x = torch.randn(2, 3, 12, 12)
    net(x).sum().backward()
    plain = net.patch_embed.proj.weight.grad.clone()
    net.set_grad_checkpointing()
    net.zero_grad()
    net(x).sum().backward()
    torch.testing.assert_close(net.patch_embed.proj.weight.grad, plain)


@pytest.mark.parametrize("name", slow_but(["acmix_swin_tiny"], KINDS))
def test_export_of_a_network_with_dynamic_batch_and_size(name):
    net = timm.create_model(name, **SMALL | {"depths": (2, 1), "num_heads": (3, 6)}).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=5), 3: torch.export.Dim("w", min=5)}
    program = torch.export.export(net, (torch.randn(2, 3, 40, 48),), dynamic_shapes={"x": free})
    for shape in [(3, 3, 37, 65), (1, 3, 5, 7)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
        ({"compat": "theirs"}, "compat must be None or 'official', got 'theirs'"),
        ({"attn_drop_rate": 0.1}, r"attn_drop_rate must stay 0.0, got 0.1"),
        ({"head_dim": 16}, "head_dim must stay None, got 16"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("acmix_swin_tiny", **TINY, **options)


def test_windows_are_not_changed_afterwards():
    net = timm.create_model("swin_tiny", **SMALL)
    net.set_input_size(img_size=(64, 64))
    with pytest.raises(ValueError, match="set_input_size cannot change window_size"):
        net.set_input_size(window_size=8)
