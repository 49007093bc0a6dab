"""Public weights of SAN, and its network written out under their names."""

import pytest
import timm
import torch
import torch.nn.functional as F

from convattn import load_official

LAYERS, KERNELS, WIDTHS = (2, 1, 1, 1, 1), (3, 7, 7, 7, 7), (64, 64, 96, 96, 128)


def drawn(name, *shape):
    generator = torch.Generator().manual_seed(sum(name.encode()) + len(name))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith("running_var"):
        return values.square() + 0.5
    return values * (0.3 if len(shape) == 1 else shape[1] ** -0.5)


def public_state():
    """A checkpoint of the public network, with the public shapes."""
    state = {}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = drawn(f"{name}.{part}", channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    def conv(name, c_in, c_out, bias=True):
        state[f"{name}.weight"] = drawn(f"{name}.weight", c_out, c_in, 1, 1)
        if bias:
            state[f"{name}.bias"] = drawn(f"{name}.bias", c_out)

    conv("conv_in", 3, WIDTHS[0], bias=False)
    norm("bn_in", WIDTHS[0])
    before = WIDTHS[0]
    for i, (blocks, kernel, width) in enumerate(zip(LAYERS, KERNELS, WIDTHS, strict=True)):
        conv(f"conv{i}", before, width, bias=False)
        norm(f"bn{i}", width)
        before, r, m = width, width // 16, width // 4
        for j in range(blocks):
            name, features = f"layer{i}.{j}", r * (kernel**2 + 1)
            norm(f"{name}.bn1", width)
            for part, channels in (("conv1", r), ("conv2", r), ("conv3", m)):
                conv(f"{name}.sam.{part}", width, channels)
            norm(f"{name}.sam.conv_w.0", features)
            conv(f"{name}.sam.conv_w.2", features, m // 8, bias=False)
            norm(f"{name}.sam.conv_w.3", m // 8)
            conv(f"{name}.sam.conv_w.5", m // 8, kernel**2 * m // 8)
            norm(f"{name}.bn2", m)
            conv(f"{name}.conv", m, width)
    state["fc.weight"], state["fc.bias"] = drawn("fc.weight", 7, before), drawn("fc.bias", 7)
    return state


def public_network(state, x):
    """Every window unfolded, reflected at the border; channels c of one ``c % (m / 8)`` share weights."""

    def norm(name, x):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def windows(x, kernel):
        return F.unfold(F.pad(x, [kernel // 2] * 4, mode="reflect"), kernel)

    def attention(name, x, kernel):
        batch, _, height, width = x.shape
        q, k, v = (conv(f"{name}.conv{i}", x) for i in (1, 2, 3))
        w = torch.cat([q.flatten(2), windows(k, kernel)], 1)[:, :, None]
        w = conv(f"{name}.conv_w.2", norm(f"{name}.conv_w.0", w).relu())
        w = conv(f"{name}.conv_w.5", norm(f"{name}.conv_w.3", w).relu())
        shared = v.shape[1] // 8
        w = w.view(batch, 1, shared, kernel**2, height * width)
        values = windows(v, kernel).view(batch, 8, shared, kernel**2, height * width)
        return (w * values).sum(3).view(batch, -1, height, width)

    x = norm("bn_in", conv("conv_in", x)).relu()
    for i, (blocks, kernel) in enumerate(zip(LAYERS, KERNELS, strict=True)):
        x = conv(f"conv{i}", F.max_pool2d(x, 2))
        for j in range(blocks):
            name = f"layer{i}.{j}"
            out = attention(f"{name}.sam", norm(f"{name}.bn1", x).relu(), kernel)
            x = x + conv(f"{name}.conv", norm(f"{name}.bn2", out).relu())
        x = norm(f"bn{i}", x).relu()
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def network(name="san10", **options):
    return timm.create_model(name, layers=LAYERS, widths=WIDTHS, num_classes=7, **options)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_outputs_equal_the_public_network(wrap):
    state, net = public_state(), network().double().eval()
    report = load_official(net, wrap(state))
    assert report.missing == report.unexpected == []
    assert report.ignored == {}
    x = torch.randn(1, 3, 131, 149, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = public_network(state, x)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def test_a_san_acmix_takes_what_a_san_has():
    report = load_official(network("acmix_san10"), public_state())
    assert report.unexpected == []
    assert {name.split(".")[5] for name in report.missing} == {"convolution", "mix"}
    assert not any("attention" in name or "projection" in name for name in report.missing)


def test_an_incomplete_projection_is_reported_by_its_public_names():
    state = public_state()
    del state["layer0.0.sam.conv2.weight"]
    report = load_official(network(), state)
    assert report.missing == ["stages.0.blocks.0.attn.projection.weight"]
    assert report.unexpected == ["layer0.0.sam.conv1.weight", "layer0.0.sam.conv3.weight"]
