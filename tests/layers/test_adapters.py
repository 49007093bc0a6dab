"""Parts whose forward an adapter replaced: they are called, and folding refuses what it would lose."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

import convattn  # noqa: F401  (timm knows the networks by it)
from convattn import PSSA, ACmix, MultiConvolution, XVolution
from convattn.layers import PatchwiseAttention2d
from convattn.layers.spatial_reduction import SpatialReductionACmix


class OnMaps(SpatialReductionACmix):
    def forward(self, x):
        return super().forward(x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))


LAYERS = {
    "acmix": partial(ACmix, 16, 16),
    "acmix-bias": partial(ACmix, 16, 16, convolution_bias=True),
    "pssa": partial(PSSA, 16, 16),
    "pssa-stride": partial(PSSA, 16, 16, stride=2),
    "xvolution": partial(XVolution, 16, 16),
    "xvolution-global": partial(XVolution, 16, 16, attention="global"),
    "xvolution-involution": partial(XVolution, 16, 16, attention="involution"),
    "xvolution-acmix": partial(XVolution, 16, 16, attention=partial(ACmix, num_heads=2)),
    "multi-convolution": partial(MultiConvolution, 16, 16),
    "patchwise": partial(PatchwiseAttention2d, 16, 16),
    "reduced": partial(OnMaps, 16, num_heads=2, sr_ratio=2),
}
HOLDERS = (nn.Sequential, nn.Identity, nn.Dropout)


def scaled(output):
    return tuple(t * 1.5 for t in output) if isinstance(output, tuple) else output * 1.5


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]().eval()
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return layer


@torch.no_grad()
def test_folding_keeps_an_adapter_or_refuses(layer):
    x = torch.randn(1, 16, 8, 8)
    parts = [name for name, part in layer.named_modules() if name and type(part) not in HOLDERS]
    for name in parts:
        adapted = copy.deepcopy(layer)
        part = adapted.get_submodule(name)
        part.forward = lambda *args, plain=part.forward, **options: scaled(plain(*args, **options))
        expected = adapted(x)
        try:
            for module in list(adapted.modules()):
                if hasattr(module, "reparameterize"):
                    module.reparameterize()
        except TypeError:
            continue
        torch.testing.assert_close(adapted(x), expected, rtol=1e-3, atol=1e-4, msg=name)


def test_folding_refuses_a_convolution_of_another_class():
    class LoRA(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    for layer in (ACmix(16, 16), PSSA(16, 16)):
        plain = layer.projection
        layer.projection = LoRA(16, 48, 1, bias=plain.bias is not None)
        with pytest.raises(
            TypeError, match="LoRA computes something else: its forward was replaced; merge the adapter"
        ):
            layer.reparameterize()


def test_a_folded_operator_calls_an_adapted_projection():
    layer = ACmix(16, 32, num_heads=2).eval()
    layer.reparameterize("grouped")
    x = torch.randn(1, 16, 9, 9)

    class LoRA(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    adapted = copy.deepcopy(layer)
    adapted.reparameterized.projection = LoRA(16, 96, 1)
    adapted.reparameterized.projection.load_state_dict(layer.reparameterized.projection.state_dict())
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in doubled.reparameterized.projection.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(adapted(x), doubled(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["san10", "acmix_san10"])
def test_networks_call_every_adapted_convolution(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, layers=(1, 1, 1, 1, 1), widths=(16, 16, 32, 32, 32)).eval()
    called = set()
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d):
            part.forward = lambda t, name=name, plain=part.forward: called.add(name) or plain(t)
    net(torch.randn(1, 3, 64, 64))
    assert called == {name for name, part in net.named_modules() if isinstance(part, nn.Conv2d)}
