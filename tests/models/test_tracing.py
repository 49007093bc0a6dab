"""Networks recorded by other tools: by torch.jit at one size and run at others, by torch.fx, by the old exporter."""

import io
import warnings

import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import convattn  # noqa: F401  (timm knows the networks by it)
from tests.quick import slow_but

RESNETS = (
    *("acmix", "sasa", "pssa", "xvolution", "multiconv", "involution"),
    *("lr", "aa", "bot", "halo", "lambda", "global"),
)
NETWORKS = {
    **{f"{operator}_resnet14": {"channels": (16, 16, 24, 32)} for operator in RESNETS},
    "acmix_swin_tiny": {"embed_dim": 12, "depths": (1, 2, 1, 1)},
    "swin_tiny": {"embed_dim": 12, "depths": (1, 2, 1, 1)},
    "pvt_v1_tiny": {},
    "acmix_pvt_tiny": {},
    "deit_tiny": {"depth": 2},
    "acmix_deit_tiny": {"depth": 2},
    "san10": {"layers": (1, 1, 1, 1, 1), "widths": (16, 16, 32, 32, 32)},
    "pairwise_san10": {"layers": (1, 1, 1, 1, 1), "widths": (16, 16, 32, 32, 32)},
    "acmix_san10": {"layers": (1, 1, 1, 1, 1), "widths": (16, 16, 32, 32, 32)},
}
OTHER_SIZES = [(1, 3, 64, 64), (2, 3, 96, 80), (1, 3, 57, 44)]


@pytest.fixture(
    params=slow_but(
        set(NETWORKS) - {"lr_resnet14", "pvt_v1_tiny", "deit_tiny", "swin_tiny", "san10", "pairwise_san10"}, NETWORKS
    ),
    ids=str,
)
def net(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=3, **NETWORKS[request.param]).eval()


@torch.no_grad()
def test_traced_by_torch_jit(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, torch.randn(2, 3, 64, 64))
    for size in OTHER_SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(traced(x), net(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_traced_symbolically(net):
    traced = torch.fx.symbolic_trace(net)
    middle = get_graph_node_names(net)[1]
    extracted = create_feature_extractor(net, {middle[len(middle) // 2]: "middle", middle[-1]: "logits"})
    for size in OTHER_SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(traced(x), net(x))
        torch.testing.assert_close(extracted(x)["logits"], net(x))


@torch.no_grad()
def test_features_by_timms_fx_extractor(net, request):
    name = request.node.callspec.params["net"]
    features = timm.create_model(name, features_only=True, feature_cls="fx", **NETWORKS[name]).eval()
    with torch.no_grad():
        maps = features(torch.randn(1, 3, 64, 64))
    assert all(channels in m.shape for m, channels in zip(maps, features.feature_info.channels(), strict=True))


@pytest.mark.parametrize("name", ["acmix_resnet14", "xvolution_resnet14", "acmix_swin_tiny"])
def test_onnx_by_the_exporter_of_torchscript(name):
    """``yolo.export`` and timm's ``onnx_export`` use ``dynamo=False``."""
    runtime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
    torch.manual_seed(0)
    net, file = timm.create_model(name, num_classes=3, **NETWORKS[name]).eval(), io.BytesIO()
    free = {"x": {0: "batch", 2: "height", 3: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(2, 3, 64, 64),), file, dynamo=False, input_names=["x"], dynamic_axes=free)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in OTHER_SIZES:
        x = torch.randn(size)
        with torch.no_grad():
            expected = net(x)
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected, rtol=1e-4, atol=1e-4
        )
