"""On a GPU every layer and network computes what it computes on the CPU, and what people do there works."""

import gc
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F

import convattn
from benchmarks.timing import Timed, captured
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.timm_operators import BottleneckAttention2d
from convattn.optimize.packing import PackedACmix, PackedProduct
from tests.models.test_tracing import NETWORKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = "cuda"

LAYERS = {
    "acmix": partial(convattn.ACmix, num_heads=2),
    "acmix-dilated": partial(convattn.ACmix, num_heads=4, dilation=2),
    "acmix-table": partial(convattn.ACmix, num_heads=2, position="table"),
    "local": partial(convattn.LocalAttention2d, num_heads=2, position="linear"),
    "local-table": convattn.LocalAttention2d,
    "shift": convattn.ShiftConv2d,
    "xvolution": convattn.XVolution,
    "pssa": convattn.PSSA,
    "local-relation": LocalRelation2d,
    "augmented": AugmentedConv2d,
    "bottleneck": partial(BottleneckAttention2d, feature_size=4),
    "involution": partial(Involution2d, channels_per_group=4),
}


@pytest.fixture(autouse=True)
def _exact_products():
    """Convolutions in float32 proper: torch's default on a GPU is TF32, which hides an error of 1e-3."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def answers(layer, x):
    """The output and the gradients of the input and of every parameter, on the CPU in float64."""
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    ramp = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
    found = torch.autograd.grad(out, [x, *layer.parameters()], ramp.to(out), allow_unused=True)
    return [t.double().cpu() for t in (out.detach(), *found) if t is not None]


def distance(got, true):
    """The largest difference of any tensor, over its own norm or a hundredth of the largest one's."""
    least = max(t.norm() for t in true) / 100
    return max(float((g - t).norm() / max(t.norm(), least)) for g, t in zip(got, true, strict=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, stride, channels_last):
    torch.manual_seed(0)
    layer, x = LAYERS[name](24, 32, stride=stride).double().eval(), torch.randn(2, 24, 13, 10, dtype=torch.float64)
    true = answers(layer, x)
    x = x.float().to(DEVICE)
    layer = layer.float().to(DEVICE)
    if channels_last:
        x, layer = x.to(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    assert distance(answers(layer, x), true) < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_under_autocast(name, dtype):
    torch.manual_seed(0)
    layer, x = LAYERS[name](24, 32).eval(), torch.randn(2, 24, 13, 10)
    true = answers(layer.double(), x.double())[0]
    with torch.autocast(DEVICE, dtype):
        got = answers(layer.float().to(DEVICE), x.to(DEVICE))[0]
    assert distance([got], [true]) < 8 * torch.finfo(dtype).eps


def build(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **NETWORKS[name])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_networks_as_trained_and_folded(name):
    net, x = build(name).eval(), torch.randn(2, 3, 64, 64)
    true, x = net(x), x.to(DEVICE)
    net = net.to(DEVICE)
    torch.testing.assert_close(net(x).cpu(), true, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(convattn.optimize(net)(x).cpu(), true, rtol=1e-3, atol=1e-4)


def gradients(net, x, scaler=None):
    """Of the loss, all as one vector in float64; where there is a scaler, scaled by it and back."""
    loss = F.cross_entropy(net(x), torch.arange(len(x), device=x.device) % 3)
    found = torch.autograd.grad(loss if scaler is None else loss * scaler, list(net.parameters()), allow_unused=True)
    return torch.cat([g.double().cpu().flatten() for g in found if g is not None]) / (scaler or 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"lambda_resnet14"}))  # timm's layer, in three dimensions
def test_training_under_autocast(name, dtype):
    net, x = build(name).eval(), torch.randn(8, 3, 64, 64)
    true = gradients(net, x)
    net, x = (t.to(DEVICE, memory_format=torch.channels_last) for t in (net, x))
    with torch.autocast(DEVICE, dtype):
        got = gradients(net, x, 2.0**7)
    assert (got - true).norm() < 50 * torch.finfo(dtype).eps * true.norm()  # a plain ResNet: 25


@pytest.mark.parametrize("name", ["acmix_resnet14", "xvolution_resnet14", "acmix_swin_tiny", "acmix_san10"])
def test_compiled_whole(name):
    torch.compiler.reset()
    net, x = build(name).to(DEVICE).eval(), torch.randn(2, 3, 64, 64, device=DEVICE)
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(net.parameters()))
    assert distance(got, expected) < 1e-2


@pytest.mark.parametrize("name", ["acmix_resnet14", "xvolution_resnet14", "acmix_san10", "acmix_pvt_tiny"])
@torch.no_grad()
def test_held_by_a_cuda_graph(name):
    net, x = build(name).to(DEVICE).eval(), torch.randn(2, 3, 64, 64, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            net(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = net(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(out, net(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_packed_weights(dtype):
    plain, x = convattn.optimize(build("acmix_resnet14")).to(DEVICE, dtype), torch.randn(2, 3, 64, 64, device=DEVICE)
    packed = convattn.optimize(plain, x.to(dtype), weights="packed")
    assert {PackedProduct, PackedACmix} <= {type(module) for module in packed.modules()}
    for size in (64, 64), (96, 80):
        x = torch.randn(3, 3, *size, device=DEVICE, dtype=dtype)
        torch.testing.assert_close(packed(x), plain(x), rtol=0.1, atol=16 * torch.finfo(dtype).eps)
    with pytest.raises(TypeError, match=r"take a \w+ map \[B, C, H, W\] on cuda:0, got"):
        next(module for module in packed.modules() if type(module) is PackedProduct)(x.cpu())


@torch.no_grad()
def test_a_captured_call_to_be_timed_keeps_its_weights():
    """A graph reads them where they were; what is freed meanwhile others get."""
    net, x, out = build("acmix_resnet14").to(DEVICE).eval(), torch.randn(2, 3, 64, 64, device=DEVICE), {}
    expected = net(x).clone()

    def timed(net, x):
        return Timed(lambda: out.update(found=net(x)), torch.no_grad)

    job = captured(timed(net, x), DEVICE)
    del net, x
    gc.collect()
    torch.cuda.empty_cache()
    spoil = [torch.full((1 << 20,), torch.nan, device=DEVICE) for _ in range(64)]
    job.run()
    torch.testing.assert_close(out["found"], expected, rtol=1e-3, atol=1e-4)
    del spoil


@pytest.mark.parametrize("name", ["acmix_resnet14", "xvolution_resnet14", "acmix_san10", "acmix_pvt_tiny"])
def test_a_step_repeats_bit_by_bit(name):
    """No kernel of ours adds in an order of its own."""
    net, x = build(name).to(DEVICE).eval(), torch.randn(4, 3, 64, 64, device=DEVICE)
    torch.backends.cudnn.deterministic = True
    try:
        first, second = (torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for _ in range(2))
    finally:
        torch.backends.cudnn.deterministic = False
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
