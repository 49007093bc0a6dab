"""Wherever the convolution worked, its replacement works."""

from functools import partial

import pytest
import torch
from torch import nn

from convattn import ACmix, LocalAttention2d, ShiftConv2d, ops
from convattn.ops import _native
from tests.layers.drop_in import DropIn, check_compiled, kept_bytes
from tests.quick import slow_but

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


class TestDropIn(DropIn):
    """With the contract of every operator."""


def grouped(*args, **options):
    layer = ACmix(*args, num_heads=2, **options)
    layer.reparameterize("grouped")
    return layer.requires_grad_()


KERNELS = {
    "acmix": (partial(ACmix, num_heads=2), "acmix"),
    "acmix-grouped": (grouped, "acmix"),
    "acmix-table": (partial(ACmix, num_heads=2, position="table"), "attend"),
    "local": (partial(LocalAttention2d, num_heads=2, position="linear"), "attend"),
}


class TestDropInOfTheKernels(DropIn):
    """The same on shapes that the kernels for windows serve, which fill whole vectors: 16 channels a head."""

    channels = (5, 32)

    @pytest.fixture(params=KERNELS, ids=str)
    def make(self, request):
        torch.manual_seed(0)
        return KERNELS[request.param][0]

    @pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")
    @pytest.mark.parametrize(("layer", "op"), KERNELS.values(), ids=KERNELS)
    def test_they_run(self, layer, op):
        with ops.backend("native") as use:
            layer(*self.channels)(torch.randn(1, 5, 7, 7))
        assert op in use.ops


def test_an_exported_layer_takes_maps_of_which_training_keeps_less():
    """Of large maps of few channels the backward pass projects q, k and v again."""
    layer, free = ACmix(4, 16), {2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    program = torch.export.export(layer, (torch.randn(1, 4, 9, 12),), dynamic_shapes={"x": free})
    x = torch.randn(1, 4, 40, 30)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_any_odd_kernel(kernel):
    x = torch.randn(1, 4, 6, 5)
    assert ACmix(4, 8, kernel_size=kernel)(x).shape == nn.Conv2d(4, 8, kernel, padding=kernel // 2)(x).shape


@pytest.mark.parametrize("make", slow_but(["acmix", "shift"], LAYERS), indirect=True)
def test_compiles_without_a_graph_break(make):
    check_compiled(make(4, 8, stride=2), "aot_eager")


@pytest.mark.slow
def test_compiles_to_native_code():
    check_compiled(ACmix(4, 8, stride=2), "inductor")


def test_what_is_kept_for_backward_has_no_window_factor():
    """At most a dozen maps (the authors' form keeps 2 * 49 of them for the attention alone)."""
    channels, size = 64, 28
    layer, x = ACmix(channels, channels), torch.randn(1, channels, size, size, requires_grad=True)
    maps = kept_bytes(layer, x) / (4 * channels * size * size)
    assert maps < 13
