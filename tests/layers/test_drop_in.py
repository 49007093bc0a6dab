"""Wherever the convolution worked, its replacement works."""

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from convattn import ACmix, LocalAttention2d, ShiftConv2d

LAYERS = {
    "acmix": ACmix,
    "acmix-table": lambda *a, **k: ACmix(*a, position="table", **k),
    "acmix-tensor": lambda *a, **k: ACmix(*a, shift="tensor", mix="convex", **k),
    "local": LocalAttention2d,
    "shift": ShiftConv2d,
}


@pytest.fixture(params=LAYERS, ids=str)
def make(request):
    torch.manual_seed(0)
    return LAYERS[request.param]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (15, 14)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_any_size(make, size, stride, dilation):
    conv = nn.Conv2d(4, 8, 3, stride, dilation, dilation)
    x = torch.randn(2, 4, *size)
    out = make(4, 8, stride=stride, dilation=dilation)(x)
    assert out.shape == conv(x).shape
    assert out.isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_any_odd_kernel(kernel):
    x = torch.randn(1, 4, 6, 5)
    assert ACmix(4, 8, kernel_size=kernel)(x).shape == nn.Conv2d(4, 8, kernel, padding=kernel // 2)(x).shape


def test_empty_batch_and_single_image(make):
    layer = make(4, 8, stride=2)
    x = torch.randn(2, 4, 5, 6)
    empty = x[:0].requires_grad_()
    layer(empty).sum().backward()
    assert empty.grad.shape == empty.shape
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_memory_layouts(make, stride):
    layer = make(4, 8, stride=stride)
    x = torch.randn(2, 4, 7, 9)
    expected = layer(x)
    strided = torch.randn(2, 8, 14, 18)[:, ::2, ::2, ::2].copy_(x)
    torch.testing.assert_close(layer(strided), expected)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)
    assert last.is_contiguous(memory_format=torch.channels_last)
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(make, dtype):
    layer = make(4, 8, stride=2)
    x = torch.randn(2, 4, 7, 9)
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(make, dtype):
    layer, x = make(4, 8), torch.randn(2, 4, 7, 9)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == nn.Conv2d(4, 8, 3)(x).dtype
    y.float().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_meta_device(make):
    layer = make(4, 8, stride=2, device="meta")
    assert layer(torch.empty(2, 4, 7, 9, device="meta")).shape == (2, 8, 4, 5)
    assert all(p.device.type == "meta" for p in layer.parameters())


def test_copies_and_saved_weights(make, tmp_path):
    layer, other = make(4, 8), make(4, 8)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    save_model(layer, str(tmp_path / "layer.safetensors"))
    load_model(other, str(tmp_path / "layer.safetensors"))
    torch.testing.assert_close(other(x), layer(x))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    torch.testing.assert_close(other(x), layer(x))


def test_gradient_checkpointing(make):
    layer = make(4, 8)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x).sum(), x)
    (kept,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    torch.testing.assert_close(plain, kept)


@pytest.mark.parametrize("stride", [1, 2])
def test_export_with_dynamic_batch_and_size(make, stride):
    layer = make(4, 8, stride=stride).eval()
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    program = torch.export.export(layer, (torch.randn(2, 4, 9, 12),), dynamic_shapes={"x": free})
    for shape in [(1, 4, 5, 6), (3, 4, 14, 3)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


def check_compiled(layer, backend):
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for shape in [(2, 4, 9, 7), (1, 4, 6, 12)]:
        x = torch.randn(shape, requires_grad=True)
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        ours, eager = (torch.autograd.grad(out.square().sum(), (x, *layer.parameters())) for out in (y, expected))
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def test_compiles_without_a_graph_break(make):
    check_compiled(make(4, 8, stride=2), "aot_eager")


@pytest.mark.slow
def test_compiles_to_native_code():
    check_compiled(ACmix(4, 8, stride=2), "inductor")


def test_what_is_kept_for_backward_has_no_window_factor():
    """At most a dozen maps (the authors' form keeps 2 * 49 of them for the attention alone)."""
    channels, size = 64, 28
    layer, x = ACmix(channels, channels), torch.randn(1, channels, size, size, requires_grad=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    maps = sum(n for pointer, n in kept.items() if pointer not in parameters) / (4 * channels * size * size)
    assert maps < 13
