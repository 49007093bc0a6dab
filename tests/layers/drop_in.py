"""Wherever a convolution worked, what replaces it works: the contract of every operator."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from convattn.layers import PSSA


class DropIn:
    """Tests of an operator that a fixture ``make(in_channels, out_channels, ...)`` makes."""

    channels = (4, 8)

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (15, 14)], ids=str)
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_any_size(self, make, size, stride, dilation):
        conv = nn.Conv2d(*self.channels, 3, stride, dilation, dilation)
        x = torch.randn(2, self.channels[0], *size)
        out = make(*self.channels, stride=stride, dilation=dilation)(x)
        assert out.shape == conv(x).shape
        assert out.isfinite().all()

    def test_empty_batch_and_single_image(self, make):
        layer = make(*self.channels, stride=2)
        x = torch.randn(2, self.channels[0], 5, 6)
        empty = x[:0].requires_grad_()
        layer(empty).sum().backward()
        assert empty.grad.shape == empty.shape
        torch.testing.assert_close(layer(x[0]), layer(x)[0])

    @pytest.mark.parametrize("stride", [1, 2])
    def test_memory_layouts(self, make, stride):
        layer = make(*self.channels, stride=stride)
        x = torch.randn(2, self.channels[0], 7, 9)
        expected = layer(x)
        strided = torch.randn(2, 2 * self.channels[0], 14, 18)[:, ::2, ::2, ::2].copy_(x)
        torch.testing.assert_close(layer(strided), expected)
        last = layer(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected)
        assert last.is_contiguous(memory_format=torch.channels_last)
        moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(moved(x), expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(self, make, dtype):
        layer = make(*self.channels, stride=2)
        x = torch.randn(2, self.channels[0], 7, 9)
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
        y.sum().backward()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, make, dtype):
        layer, x = make(*self.channels), torch.randn(2, self.channels[0], 7, 9)
        with torch.autocast("cpu", dtype=dtype):
            y = layer(x)
            overflows = isinstance(layer, PSSA) and dtype == torch.float16  # three maps multiplied
            assert y.dtype == (torch.float32 if overflows else nn.Conv2d(*self.channels, 3)(x).dtype)
        y.float().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.dtype == torch.float32, name
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)

    def test_meta_device(self, make):
        layer = make(*self.channels, stride=2, device="meta", dtype=torch.float64)
        assert layer(torch.empty(2, self.channels[0], 7, 9, device="meta", dtype=torch.float64)).shape == (
            2,
            self.channels[1],
            4,
            5,
        )
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}

    def test_copies_and_saved_weights(self, make, tmp_path):
        layer, other = make(*self.channels), make(*self.channels)
        x = torch.randn(1, self.channels[0], 5, 5)
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
        save_model(layer, str(tmp_path / "layer.safetensors"))
        load_model(other, str(tmp_path / "layer.safetensors"))
        torch.testing.assert_close(other(x), layer(x))
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        torch.testing.assert_close(other(x), layer(x))

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, make, use_reentrant):
        layer = make(*self.channels)
        x = torch.randn(1, self.channels[0], 5, 5, requires_grad=True)
        (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
        checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
        torch.testing.assert_close(x.grad, plain)

    def test_transforms_of_torch_func_and_forward_mode(self, make):
        """The tangents of forward mode are those of the gradients: <J v, u> = <v, J^T u>."""
        layer = make(*self.channels, stride=2).double().eval()
        x, v = torch.randn(2, 2, self.channels[0], 7, 5, dtype=torch.float64)
        y, tangent = torch.func.jvp(layer, (x,), (v,))
        u = torch.randn_like(y)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf), leaf, u)
        torch.testing.assert_close((tangent * u).sum(), (v * gradient).sum())
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v)))
        torch.testing.assert_close(dual.tangent, tangent)
        loss = torch.func.grad(lambda x, u: (layer(x) * u).sum())
        torch.testing.assert_close(loss(x, u), gradient)
        torch.testing.assert_close(torch.func.vmap(loss)(x[:, None], u[:, None])[:, 0], gradient)

    def test_adapters_that_replace_a_forward(self, make):
        """As LyCORIS's and accelerate's do; hooks on all modules see every part too."""
        layer = make(*self.channels).eval()
        x = torch.randn(1, self.channels[0], 5, 5)
        parts = [name for name, part in layer.named_modules() if type(part) in (nn.Conv2d, nn.Linear)]
        for name in parts:
            adapted = copy.deepcopy(layer)
            part, rate = adapted.get_submodule(name), torch.ones(1, requires_grad=True)
            part.forward = lambda t, plain=part.forward, rate=rate: plain(t) * rate
            y = adapted(x)
            torch.testing.assert_close(y, layer(x))
            (gradient,) = torch.autograd.grad(y.square().sum(), rate)
            assert gradient.abs() > 0, name
        seen = set()
        hook = register_module_forward_hook(lambda module, inputs, output: seen.add(module))
        layer(x)
        hook.remove()
        assert seen >= {layer.get_submodule(name) for name in parts}

    @pytest.mark.parametrize("grad", [True, False])
    def test_traced_by_torch_jit(self, make, grad):
        layer = make(*self.channels, stride=2).eval()
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of conditions on shapes, which raise where they fail
            traced = torch.jit.trace(layer, torch.randn(2, self.channels[0], 9, 12))
        for size in [(9, 12), (5, 6), (14, 3)]:
            x = torch.randn(1, self.channels[0], *size)
            torch.testing.assert_close(traced(x), layer(x))

    def test_traced_symbolically(self, make):
        layer = make(*self.channels, stride=2).eval()
        traced = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
        assert [node.op for node in traced.graph.nodes].count("call_module") == 2
        for size in [(9, 12), (5, 6)]:
            x = torch.randn(1, self.channels[0], *size)
            torch.testing.assert_close(traced(x), layer(x).relu())

    @pytest.mark.parametrize("stride", [1, 2])
    def test_export_with_dynamic_batch_and_size(self, make, stride):
        layer = make(*self.channels, stride=stride).eval()
        free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
        program = torch.export.export(layer, (torch.randn(2, self.channels[0], 9, 12),), dynamic_shapes={"x": free})
        for batch, *size in [(1, 5, 6), (3, 14, 3)]:
            x = torch.randn(batch, self.channels[0], *size)
            torch.testing.assert_close(program.module()(x), layer(x))


def check_compiled(layer, backend):
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for shape in [(2, 4, 9, 7), (1, 4, 6, 12)]:
        x = torch.randn(shape, requires_grad=True)
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        ours, eager = (torch.autograd.grad(out.square().sum(), (x, *layer.parameters())) for out in (y, expected))
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def kept_bytes(layer, x):
    """How much a layer keeps for its gradients, its parameters aside."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    return sum(n for pointer, n in kept.items() if pointer not in parameters)
