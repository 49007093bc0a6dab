"""Wherever the convolution worked, the operators that the papers compare with work."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.bottleneck import BottleneckAttention2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d

LAYERS = {
    "local-relation": partial(LocalRelation2d, channels_per_group=2),
    "local-relation-absolute": partial(LocalRelation2d, composability="absolute_difference"),
    "local-relation-product": partial(LocalRelation2d, composability="product"),
    "augmented": AugmentedConv2d,
    "augmented-alone": partial(AugmentedConv2d, value_ratio=1.0, position=None),
    "bottleneck": partial(BottleneckAttention2d, feature_size=4),
    "involution": partial(Involution2d, channels_per_group=4),
}


@pytest.fixture(params=LAYERS, ids=str)
def make(request):
    """In evaluation: involution has a batch norm, which ties the images of a batch in training."""
    torch.manual_seed(0)
    return lambda *args, **options: LAYERS[request.param](*args, **options).eval()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (15, 14)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_any_size(make, size, stride, dilation):
    conv = nn.Conv2d(4, 8, 3, stride, dilation, dilation)
    x = torch.randn(2, 4, *size)
    out = make(4, 8, stride=stride, dilation=dilation)(x)
    assert out.shape == conv(x).shape
    assert out.isfinite().all()


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
    layer = make(4, 8, stride=2, device="meta", dtype=torch.float64)
    assert layer(torch.empty(2, 4, 7, 9, device="meta", dtype=torch.float64)).shape == (2, 8, 4, 5)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_copies_and_saved_weights(make, tmp_path):
    layer, other = make(4, 8), make(4, 8)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    save_model(layer, str(tmp_path / "layer.safetensors"))
    load_model(other, str(tmp_path / "layer.safetensors"))
    torch.testing.assert_close(other(x), layer(x))


def test_gradient_checkpointing(make):
    layer = make(4, 8)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x).sum(), x)
    (kept,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    torch.testing.assert_close(plain, kept)


@pytest.mark.parametrize("stride", [1, 2])
def test_export_with_dynamic_batch_and_size(make, stride):
    layer = make(4, 8, stride=stride)
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    program = torch.export.export(layer, (torch.randn(2, 4, 9, 12),), dynamic_shapes={"x": free})
    for shape in [(1, 4, 5, 6), (3, 4, 14, 3)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("name", ["local-relation", "augmented", "involution"])
def test_compiles_without_a_graph_break(name):
    torch.manual_seed(0)
    layer = LAYERS[name](4, 8, stride=2).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 4, 9, 7), (1, 4, 6, 12)]:
        x = torch.randn(shape, requires_grad=True)
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        ours, eager = (torch.autograd.grad(out.square().sum(), (x, *layer.parameters())) for out in (y, expected))
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("operator", [LocalRelation2d, Involution2d])
def test_no_window_of_the_values_is_kept_for_backward(operator):
    """The weights, a number for each tap and group, are kept; the values of every tap, 49 maps, are not."""
    channels, size = 64, 14
    layer, x = operator(channels, channels), torch.randn(1, channels, size, size, requires_grad=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    maps = sum(n for pointer, n in kept.items() if pointer not in parameters) / (4 * channels * size * size)
    weights = {LocalRelation2d: 49 / 8, Involution2d: 49 / 16}[operator]
    assert maps < weights + 6
