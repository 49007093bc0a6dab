"""Public PVT v1 weights: an independent network under the public names, in plain functions and float64."""

import pytest
import timm
import torch
import torch.nn.functional as F

from convattn.models.pvt import PVT
from convattn.models.pvt_names import rename

DIMS, HEADS, RATIOS, MLP = (8, 16, 20, 24), (1, 2, 5, 3), (8, 4, 2, 1), (8, 8, 4, 4)
DEPTHS = (1, 2, 1, 1)
OPTIONS = {"embed_dims": DIMS, "depths": DEPTHS, "num_heads": HEADS, "num_classes": 7}


def public_state(image=224, heads=True):
    """A state dict under the public names; ``heads=False``: as saved by the detection code."""
    generator = torch.Generator().manual_seed(0)
    shapes, before = {}, 3
    for i, (c, ratio, hidden) in enumerate(zip(DIMS, RATIOS, MLP, strict=True), 1):
        patch = 4 if i == 1 else 2
        shapes |= {f"patch_embed{i}.proj.weight": (c, before, patch, patch), f"patch_embed{i}.proj.bias": (c,)}
        shapes |= {f"patch_embed{i}.norm.{p}": (c,) for p in ("weight", "bias")}
        shapes[f"pos_embed{i}"] = (1, (image // 2 ** (i + 1)) ** 2 + (i == 4), c)
        for j in range(DEPTHS[i - 1]):
            block = f"block{i}.{j}"
            linear = {"attn.q": (c, c), "attn.kv": (2 * c, c), "attn.proj": (c, c)}
            linear |= {"mlp.fc1": (hidden * c, c), "mlp.fc2": (c, hidden * c)}
            if ratio > 1:
                linear["attn.sr"] = (c, c, ratio, ratio)
            for name, shape in linear.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            for norm in ("norm1", "norm2", *(["attn.norm"] if ratio > 1 else [])):
                shapes |= {f"{block}.{norm}.{p}": (c,) for p in ("weight", "bias")}
        before = c
    if heads:
        c = DIMS[-1]
        shapes |= {"cls_token": (1, 1, c), "norm.weight": (c,), "norm.bias": (c,)}
        shapes |= {"head.weight": (7, c), "head.bias": (7,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * (0.3 if len(shape) > 1 else 1)
        for name, shape in shapes.items()
    }


def norm(x, state, name, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attention(x, size, state, name, heads, ratio):
    batch, count, c = x.shape
    source = x
    if ratio > 1:
        image = x.transpose(1, 2).reshape(batch, c, *size)
        reduced = F.conv2d(image, state[f"{name}.sr.weight"], state[f"{name}.sr.bias"], stride=ratio)
        source = norm(reduced.flatten(2).transpose(1, 2), state, f"{name}.norm", 1e-5)
    q = linear(x, state, f"{name}.q").reshape(batch, count, heads, c // heads)
    k, v = linear(source, state, f"{name}.kv").reshape(batch, -1, 2, heads, c // heads).unbind(2)
    weights = (torch.einsum("bthc,bshc->bhts", q, k) * (c // heads) ** -0.5).softmax(-1)
    return linear(torch.einsum("bhts,bshc->bthc", weights, v).flatten(2), state, f"{name}.proj")


def public_network(x, state, *, grids, class_token=True):
    """The maps of the four stages, and with a class token the logits. ``grids``: sides of the position tables."""
    maps = []
    for i, (heads, ratio, side) in enumerate(zip(HEADS, RATIOS, grids, strict=True), 1):
        patch = 4 if i == 1 else 2
        x = F.conv2d(x, state[f"patch_embed{i}.proj.weight"], state[f"patch_embed{i}.proj.bias"], stride=patch)
        size = tuple(x.shape[-2:])
        x = norm(x.flatten(2).transpose(1, 2), state, f"patch_embed{i}.norm", 1e-5)
        table = state[f"pos_embed{i}"]
        first, table = table[:, : int(i == 4)], table[:, int(i == 4) :]
        if size != (side, side):
            table = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            table = F.interpolate(table, size=size, mode="bilinear").flatten(2).transpose(1, 2)
        if i == 4 and class_token:
            x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
            table = torch.cat([first, table], 1)
        x = x + table
        for j in range(DEPTHS[i - 1]):
            block = f"block{i}.{j}"
            x = x + attention(norm(x, state, f"{block}.norm1", 1e-6), size, state, f"{block}.attn", heads, ratio)
            hidden = F.gelu(linear(norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
            x = x + linear(hidden, state, f"{block}.mlp.fc2")
        if i == 4 and class_token:
            return maps, linear(norm(x, state, "norm", 1e-6)[:, 0], state, "head")
        x = x.transpose(1, 2).reshape(len(x), -1, *size)
        maps.append(x)
    return maps, None


def load(net, state):
    """Rename and load; returns what is left over, what is ignored and what the network did not get."""
    source, ignored = dict(state), {}
    mapped = rename(net, source, ignored)
    mapped |= {name: source.pop(name) for name in list(source) if name in net.state_dict()}
    missing, unexpected = net.load_state_dict(mapped, strict=False)
    assert not unexpected
    return source, ignored, missing


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_logits_equal_the_public_network(size):
    net = timm.create_model("pvt_v1_tiny", **OPTIONS).double().eval()
    state = public_state()
    assert load(net, state) == ({}, {}, [])
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = public_network(x, state, grids=(56, 28, 14, 7))[1]
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net.float()(x.float()).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [True, False], ids=["classification", "detection"])
def test_features_equal_the_public_detection_network(heads):
    net = timm.create_model("pvt_v1_tiny", features_only=True, **OPTIONS).double().eval()
    state = public_state(heads=heads)
    left, ignored, missing = load(net.model, state)
    assert (left, missing) == ({}, [])
    assert set(ignored) == ({"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"} if heads else set())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = public_network(x, state, grids=(56, 28, 14, 7), class_token=False)[0]
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_tables_for_another_size_are_interpolated():
    net = timm.create_model("pvt_v1_tiny", img_size=224, **OPTIONS).double().eval()
    state = public_state(image=256)
    assert load(net, state) == ({}, {}, [])
    assert net.stages[3].pos_embed.shape == (1, 50, 24)
    assert torch.equal(net.stages[3].pos_embed[:, 0], state["pos_embed4"][:, 0])
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    expected = public_network(x, state, grids=(64, 32, 16, 8))[1]
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_acmix_takes_what_it_shares():
    net = timm.create_model("acmix_pvt_tiny", **OPTIONS).double().eval()
    left, ignored, missing = load(net, public_state())
    assert (left, ignored) == ({}, {})
    assert {name.split("attn.")[1] for name in missing} == {
        "convolution.fc",
        "convolution.kernel",
        "mix.alpha",
        "mix.beta",
    }


def test_our_own_and_foreign_names_are_left_alone():
    net = timm.create_model("pvt_v1_tiny", **OPTIONS)
    source = dict(net.state_dict()) | {"block1.0.attn.rate1": torch.zeros(1), "block9.0.norm1.weight": torch.zeros(1)}
    before, ignored = set(source), {}
    assert rename(net, source, ignored) == ignored == {}
    assert set(source) == before


def test_a_table_that_is_no_square_is_named():
    state = public_state() | {"pos_embed2": torch.zeros(1, 28 * 27, 16)}
    with pytest.raises(ValueError, match="pos_embed2 in the checkpoint has 756 rows, which is no square grid"):
        rename(timm.create_model("pvt_v1_tiny", **OPTIONS), dict(state), {})


def test_another_network_is_refused():
    assert isinstance(timm.create_model("pvt_v1_tiny", **OPTIONS), PVT)
    with pytest.raises(TypeError, match="expected a PVT, got Linear"):
        rename(torch.nn.Linear(1, 1), {}, {})
