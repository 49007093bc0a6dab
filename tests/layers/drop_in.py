"""Wherever a convolution worked, what replaces it works: the contract of every operator."""

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.checkpoint import checkpoint


class DropIn:
    """Tests of an operator that a fixture ``make(in_channels, out_channels, ...)`` makes."""

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (15, 14)], ids=str)
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_any_size(self, make, size, stride, dilation):
        conv = nn.Conv2d(4, 8, 3, stride, dilation, dilation)
        x = torch.randn(2, 4, *size)
        out = make(4, 8, stride=stride, dilation=dilation)(x)
        assert out.shape == conv(x).shape
        assert out.isfinite().all()

    def test_empty_batch_and_single_image(self, make):
        layer = make(4, 8, stride=2)
        x = torch.randn(2, 4, 5, 6)
        empty = x[:0].requires_grad_()
        layer(empty).sum().backward()
        assert empty.grad.shape == empty.shape
        torch.testing.assert_close(layer(x[0]), layer(x)[0])

    @pytest.mark.parametrize("stride", [1, 2])
    def test_memory_layouts(self, make, stride):
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
    def test_dtypes(self, make, dtype):
        layer = make(4, 8, stride=2)
        x = torch.randn(2, 4, 7, 9)
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
        y.sum().backward()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, make, dtype):
        layer, x = make(4, 8), torch.randn(2, 4, 7, 9)
        with torch.autocast("cpu", dtype=dtype):
            y = layer(x)
            assert y.dtype == nn.Conv2d(4, 8, 3)(x).dtype
        y.float().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.dtype == torch.float32, name
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)

    def test_meta_device(self, make):
        layer = make(4, 8, stride=2, device="meta", dtype=torch.float64)
        assert layer(torch.empty(2, 4, 7, 9, device="meta", dtype=torch.float64)).shape == (2, 8, 4, 5)
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}

    def test_copies_and_saved_weights(self, make, tmp_path):
        layer, other = make(4, 8), make(4, 8)
        x = torch.randn(1, 4, 5, 5)
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
        save_model(layer, str(tmp_path / "layer.safetensors"))
        load_model(other, str(tmp_path / "layer.safetensors"))
        torch.testing.assert_close(other(x), layer(x))
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        torch.testing.assert_close(other(x), layer(x))

    def test_gradient_checkpointing(self, make):
        layer = make(4, 8)
        x = torch.randn(1, 4, 5, 5, requires_grad=True)
        (plain,) = torch.autograd.grad(layer(x).sum(), x)
        (kept,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
        torch.testing.assert_close(plain, kept)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_export_with_dynamic_batch_and_size(self, make, stride):
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
