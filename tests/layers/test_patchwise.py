import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn import ACmix
from convattn.layers import patchwise
from convattn.layers.patchwise import PatchwiseAttention, PatchwiseAttention2d


def draw_statistics(module):
    """Batch norms as after training, and such as only a test has: gains below zero and of zero."""
    generator = torch.Generator().manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, scale, offset in (
                (norm.weight.data, 0.5, 0.7),
                (norm.bias.data, 0.5, 0.2),
                (norm.running_mean, 0.3, 0.0),
            ):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + offset)
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
            if len(norm.weight) > 4:
                norm.weight.data[3] = 0
    return module


def built(channels=16, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return draw_statistics(PatchwiseAttention(channels, **options)).to(dtype).eval()


def drawn(path, batch, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    widths = (path.query_channels, path.query_channels, path.channels)
    return [torch.randn(batch, c, height, width, dtype=dtype, generator=generator) for c in widths]


def bounced(position, size):
    """The pixel that reflection finds, however far beyond the border."""
    if size == 1:
        return 0
    while not 0 <= position < size:
        position = -position if position < 0 else 2 * (size - 1) - position
    return position


def by_pixels(path, q, k, v):
    """The definition, pixel by pixel, from the layer's parameters."""
    norm, conv, second_norm, second = (path.weights[i] for i in (0, 2, 3, 5))
    (rows, columns), heads = path.kernel_size, path.channels // path.share
    height, width = v.shape[2:]
    pixels = []
    for y in range(height):
        for x in range(width):
            seen = [
                (bounced(y + dy - rows // 2, height), bounced(x + dx - columns // 2, width))
                for dy in range(rows)
                for dx in range(columns)
            ]
            keys = torch.stack([k[:, :, i, j] for i, j in seen], 2)
            features = torch.cat([q[:, :, y, x], keys.flatten(1)], 1)
            features = _norm(norm, features).relu() @ conv.weight.flatten(1).t()
            weights = _norm(second_norm, features).relu() @ second.weight.flatten(1).t() + second.bias
            weights = weights.unflatten(1, (heads, -1))
            values = torch.stack([v[:, :, i, j] for i, j in seen], 2)
            pixels.append(torch.stack([(weights[:, c % heads] * values[:, c]).sum(1) for c in range(path.channels)], 1))
    return torch.stack(pixels, 2).unflatten(2, (height, width))


def _norm(norm, features):
    return (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


GEOMETRIES = [
    ({"kernel_size": 3}, (2, 5, 7)),
    ({"kernel_size": 7}, (1, 9, 11)),
    ({"kernel_size": 7}, (2, 3, 2)),
    ({"kernel_size": 7}, (1, 1, 1)),
    ({"kernel_size": 7}, (1, 1, 6)),
    ({"kernel_size": (3, 5), "share": 2, "query_channels": 3}, (1, 4, 9)),
]


@pytest.mark.parametrize(("options", "size"), GEOMETRIES)
def test_outputs_and_gradients_equal_a_loop_over_pixels(options, size):
    path = built(**options)
    inputs = [part.requires_grad_() for part in drawn(path, *size)]
    expected, found = by_pixels(path, *inputs), path(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    wanted = [*inputs, *path.parameters()]
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, gradient), torch.autograd.grad(expected, wanted, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("options", "size"), [*GEOMETRIES, ({"kernel_size": 7}, (3, 40, 5))])
@pytest.mark.parametrize("budget", [1, 4000, 1 << 30])
@pytest.mark.parametrize("border", ["reflect", "zeros", "replicate"])
def test_bands_and_folded_batch_norms_change_nothing(options, size, budget, border, monkeypatch):
    path = built(border=border, **options)
    inputs = drawn(path, *size)
    expected = path(*inputs).detach()
    monkeypatch.setattr(patchwise, "working_set_bytes", lambda device: budget)
    with torch.no_grad():
        torch.testing.assert_close(path(*inputs), expected, rtol=1e-10, atol=1e-10)


def test_a_loop_over_pixels_with_zeros_beyond_the_border():
    path = built(border="zeros", kernel_size=3)
    q, k, v = drawn(path, 1, 4, 5)
    inner = by_pixels(path, *(F.pad(part, (1, 1, 1, 1)) for part in (q, k, v)))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(path(q, k, v), inner, rtol=1e-10, atol=1e-10)


def test_the_gathered_values_never_exist_and_the_gathered_keys_only_in_part(monkeypatch):
    path = built(dtype=torch.float32)
    largest = 0

    def noted(*shape_or_tensor, **options):
        nonlocal largest
        made = allocate(*shape_or_tensor, **options)
        largest = max(largest, made.numel())
        return made

    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    monkeypatch.setattr(patchwise, "working_set_bytes", lambda device: 1 << 16)
    with torch.no_grad():
        path(*drawn(path, 1, 64, 64, torch.float32))
    assert 0 < largest <= (1 << 16) / 4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reparameterized_gives_the_same_and_keeps_the_layout(memory_format):
    path = built(dtype=torch.float32)
    inputs = [part.contiguous(memory_format=memory_format) for part in drawn(path, 2, 9, 9, torch.float32)]
    expected = path(*inputs).detach()
    path.reparameterize()
    path.reparameterize()
    with torch.no_grad():
        found = path(*inputs)
    for output in (found, path(*inputs)):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        assert output.is_contiguous(memory_format=memory_format)


def test_a_corner_beyond_all_numbers_is_a_constant():
    path = built(dtype=torch.float32)
    with torch.no_grad():
        gains = path.weights[0].weight
        gains[:6] = torch.tensor([1e-44, -1e-7, 1e-44, -1e-44, 0.0, 0.0])
        path.weights[0].bias[:6] = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, -1.0])
        path.weights[0].running_mean[:6] = 0
    inputs = drawn(path, 1, 5, 5, torch.float32)
    expected = path(*inputs).detach()
    with torch.no_grad():
        torch.testing.assert_close(path(*inputs), expected, rtol=1e-4, atol=1e-5)
        halves = [part.half() for part in inputs]
        for _ in range(2):
            with torch.autocast("cpu", torch.float16):
                torch.testing.assert_close(path(*halves).float(), expected, rtol=0.02, atol=0.02)
            path.reparameterize()
            torch.testing.assert_close(path(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_its_own_are_those_that_it_sums_with():
    path = built(kernel_size=3)
    q, k, _ = drawn(path, 1, 4, 4)
    weights = path.attention_weights(q, k)
    folded = copy.deepcopy(path)
    folded.reparameterize()
    assert weights.shape == (1, 2, 9, 4, 4)
    torch.testing.assert_close(folded.attention_weights(q, k), weights, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    exact = built(kernel_size=3)
    inputs = drawn(exact, 1, 6, 5)
    expected = exact(*inputs).detach()
    path, halves = copy.deepcopy(exact).to(dtype), [part.to(dtype) for part in inputs]
    outputs = [path(*halves)]
    with torch.no_grad():
        outputs.append(path(*halves))
    with torch.autocast("cpu", dtype):
        single = copy.deepcopy(exact).float()
        outputs.append(single(*(part.float() for part in inputs)))
        with torch.no_grad():
            outputs.append(single(*halves))
    for output in outputs:
        assert output.dtype == dtype
        assert ((output.double() - expected).abs().max() / expected.abs().max()).item() < 0.05


def test_empty_batches_meta_tensors_and_training():
    path = built(dtype=torch.float32)
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            assert path(*drawn(path, 0, 5, 4, torch.float32)).shape == (0, 16, 5, 4)
    meta = copy.deepcopy(path).to("meta")
    with torch.no_grad():
        assert meta(*(part.to("meta") for part in drawn(path, 2, 5, 4, torch.float32))).shape == (2, 16, 5, 4)
    assert meta(*(part.to("meta") for part in drawn(path, 2, 5, 4, torch.float32))).shape == (2, 16, 5, 4)
    path.train()
    before = path.weights[0].running_mean.clone()
    path(*drawn(path, 2, 5, 4, torch.float32)).sum().backward()
    assert not torch.equal(path.weights[0].running_mean, before)


def test_a_hook_on_the_network_of_the_weights_is_called():
    path, calls = built(kernel_size=3), []
    path.weights[2].register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        path(*drawn(path, 1, 4, 4))
    assert calls == [1]


@pytest.mark.parametrize("reparameterized", [False, True])
def test_export_with_dynamic_size(reparameterized):
    layer = draw_statistics(PatchwiseAttention2d(32, 16)).eval()
    if reparameterized:
        layer.attention.reparameterize()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(2, 32, 9, 8),), dynamic_shapes={"x": free})
        for size in [(1, 3, 21), (3, 10, 2)]:
            x = torch.randn(size[0], 32, *size[1:])
            torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_in_one_graph(grad):
    layer = draw_statistics(PatchwiseAttention2d(16, 8, kernel_size=3)).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 16, 6, 5)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)


def test_acmix_takes_it_and_both_paths_share_the_projection():
    layer = draw_statistics(ACmix(64, 16, attention=PatchwiseAttention(16))).double().eval()
    assert layer.projection.out_channels == 4 + 4 + 16
    assert layer.convolution.maps == 6
    x = torch.randn(2, 64, 9, 10, dtype=torch.float64)
    q, k, v = layer.projection(x).split((4, 4, 16), 1)
    maps = torch.einsum("mt,btdhw->bdmhw", layer.convolution.fc, torch.cat([q, k, v], 1).unflatten(1, (6, 4)))
    convolution = F.conv2d(maps.flatten(1, 2), layer.convolution.kernel, padding=1, groups=4)
    expected = (0.5 * by_pixels(layer.attention, q, k, v) + 0.5 * convolution).detach()
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    layer.reparameterize()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchwiseAttention(16, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: PatchwiseAttention(16, share=3), "share must divide the 16 channels, got 3; None chooses"),
        (lambda: PatchwiseAttention(0), "must be at least 1, got 0"),
        (
            lambda: PatchwiseAttention(16)(*(torch.zeros(1, c, 5, 5) for c in (4, 4, 8))),
            r"q and k must be \[B, 4, H, W\] and v \[B, 16, H, W\], got \[1, 4, 5, 5\]",
        ),
        (lambda: PatchwiseAttention2d(32, 16)(torch.zeros(1, 8, 5, 5)), r"must be \[B, 32, H, W\]"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
