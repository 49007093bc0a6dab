"""Weights under the public names of Swin-ACmix and Swin, against a plain reading of the authors' network."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer

import convattn.models.swin  # noqa: F401  registers the networks
from convattn import load_official, official
from convattn.models.swin_names import rename
from tests.official.test_acmix import drawn

DEPTHS, HEADS, WIDTH, WINDOW = (2, 2, 1), (3, 6, 12), 12, 4
NET = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 5, "window_size": WINDOW}


@pytest.fixture(autouse=True)
def host(monkeypatch):
    monkeypatch.setitem(official._HOSTS, SwinTransformer, rename)


def theirs(acmix):
    """A state dict in the layout of microsoft/Swin-Transformer and LeapLabTHU/ACmix."""
    shapes = {"patch_embed.proj.weight": (WIDTH, 3, 4, 4), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {f"patch_embed.norm.{part}": (WIDTH,) for part in ("weight", "bias")}
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        dim = WIDTH * 2**stage
        for block in range(depth):
            for name, shape in block_shapes(dim, heads, acmix).items():
                shapes[f"layers.{stage}.blocks.{block}.{name}"] = shape
        if stage < len(DEPTHS) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            shapes |= {f"layers.{stage}.downsample.norm.{part}": (4 * dim,) for part in ("weight", "bias")}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (5, dim), "head.bias": (5,)}
    state = {name: drawn(name, shape) for name, shape in shapes.items()}
    state |= {name: 1 + value for name, value in state.items() if "norm" in name and name.endswith("weight")}
    area = WINDOW**2
    state |= {"layers.0.blocks.1.attn_mask": torch.zeros(4, area, area)}
    state |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(area, area, dtype=torch.long)}
    return state


def block_shapes(dim, heads, acmix):
    linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    shapes = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"norm{i}.{part}": (dim,) for i in (1, 2) for part in ("weight", "bias")}
    shapes["attn.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
    if acmix:
        shapes |= {"attn.fc.weight": (9, 3 * heads, 1, 1), "attn.fc.bias": (9,)}
        shapes |= {"attn.dep_conv.weight": (dim, 9, 3, 3), "attn.rate1": (1,), "attn.rate2": (1,)}
    return shapes


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def window_attention(state, name, qkv, heads, shift):
    """Attention on the rolled map, one window after the other."""
    height, width = qkv.shape[1:3]
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, -1))
    table = state[f"{name}.relative_position_bias_table"]
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
    index = (y[:, None] - y + WINDOW - 1) * (2 * WINDOW - 1) + x[:, None] - x + WINDOW - 1
    out = torch.empty_like(q)
    for top in range(0, height, WINDOW):
        for left in range(0, width, WINDOW):
            at = (slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
            wq, wk, wv = (part[at].flatten(1, 2) for part in (q, k, v))
            logits = torch.einsum("bihd,bjhd->bhij", wq, wk) * wq.shape[-1] ** -0.5
            logits = logits + table[index].permute(2, 0, 1)
            # rows and columns that the roll brought from the other side are strangers
            side = (top + y >= height - shift) * 2 + (left + x >= width - shift) if shift else y * 0
            logits = logits - 100.0 * (side[:, None] != side)
            mixed = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), wv)
            out[at] = mixed.unflatten(1, (WINDOW, WINDOW))
    return linear(state, f"{name}.proj", out.flatten(3))


def convolution(state, name, qkv, heads):
    maps = qkv.unflatten(-1, (3 * heads, -1))
    maps = torch.einsum("bhwtd,mt->bdmhw", maps, state[f"{name}.fc.weight"].flatten(1))
    maps = maps + state[f"{name}.fc.bias"][:, None, None]
    out = F.conv2d(maps.flatten(1, 2), state[f"{name}.dep_conv.weight"], padding=1, groups=maps.shape[1])
    return out.permute(0, 2, 3, 1)


def block(state, name, x, heads, shift):
    shift = shift if min(x.shape[1:3]) > WINDOW else 0
    rolled = torch.roll(norm(state, f"{name}.norm1", x), (-shift, -shift), (1, 2))
    qkv = linear(state, f"{name}.attn.qkv", rolled)
    mixed = window_attention(state, f"{name}.attn", qkv, heads, shift)
    if f"{name}.attn.rate1" in state:
        path = convolution(state, f"{name}.attn", qkv, heads)
        mixed = state[f"{name}.attn.rate1"] * mixed + state[f"{name}.attn.rate2"] * path
    x = x + torch.roll(mixed, (shift, shift), (1, 2))
    hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x)))
    return x + linear(state, f"{name}.mlp.fc2", hidden)


def their_network(state, x):
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = norm(state, "patch_embed.norm", x.permute(0, 2, 3, 1))
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        for index in range(depth):
            x = block(state, f"layers.{stage}.blocks.{index}", x, heads, shift=index % 2 * WINDOW // 2)
        if stage < len(DEPTHS) - 1:
            x = torch.cat([x[:, a::2, b::2] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
            name = f"layers.{stage}.downsample"
            x = linear(state, f"{name}.reduction", norm(state, f"{name}.norm", x))
    return linear(state, "head", norm(state, "norm", x).mean((1, 2)))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}])
def test_acmix_outputs_equal_the_authors(wrap):
    state = theirs(acmix=True)
    net = timm.create_model("acmix_swin_tiny", compat="official", **NET).eval()
    report = load_official(net, wrap(dict(state)))
    assert report.missing == report.unexpected == []
    assert set(report.ignored) == {"layers.0.blocks.1.attn_mask", "layers.0.blocks.0.attn.relative_position_index"}
    x = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = their_network(state, x)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
        ours = timm.create_model("acmix_swin_tiny", **NET).eval()
        load_official(ours, dict(state))
        assert (ours(x) - expected).abs().max() > 1e-3  # only the map that the convolution path sees differs


@pytest.mark.parametrize(
    ("name", "options"),
    [("swin_tiny", {}), ("swin_tiny_patch4_window7_224", {"img_size": (64, 128)})],
)
def test_plain_swin_outputs_equal_microsofts(name, options):
    state = theirs(acmix=False)
    net = timm.create_model(name, **NET, **options).eval()
    report = load_official(net, dict(state))
    assert report.missing == report.unexpected == []
    x = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x), their_network(state, x), rtol=1e-5, atol=1e-5)


def test_a_plain_swin_fills_what_it_can_of_a_swin_acmix():
    net = timm.create_model("acmix_swin_tiny", **NET)
    state = theirs(acmix=False)
    report = load_official(net, dict(state))
    parts = {name.split(".attn.")[1] for name in report.missing}
    assert parts == {"convolution.fc", "convolution.fc_bias", "convolution.kernel", "mix.alpha", "mix.beta"}
    projection = net.layers[1].blocks[0].attn.projection.weight
    assert torch.equal(projection.flatten(1), state["layers.1.blocks.0.attn.qkv.weight"])
    assert torch.equal(net.layers[2].downsample.reduction.weight, state["layers.1.downsample.reduction.weight"])


@pytest.mark.parametrize("name", ["swin_tiny", "acmix_swin_tiny"])
def test_this_librarys_own_names_pass_through(name):
    net = timm.create_model(name, **NET)
    state, ignored = net.state_dict(), {}
    report = load_official(net, state)
    assert report.missing == report.unexpected == []
    assert rename(net, dict(state), ignored) == ignored == {}


def test_another_window_is_named():
    net = timm.create_model("acmix_swin_tiny", **NET | {"window_size": 7})
    with pytest.raises(ValueError, match=r"relative_position_bias_table is \[49, 3\] in the checkpoint and \[169, 3\]"):
        load_official(net, theirs(acmix=True))
