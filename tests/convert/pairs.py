"""Networks of every family, tiny, and what is done to them, one thing after another."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.models.byobnet import ByoBlockCfg
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import convattn.models  # noqa: F401  registers the networks
from convattn.convert import convert
from convattn.optimize import optimize

Again = Callable[[], nn.Module]
"""Builds the same network anew, with other weights."""


def _blocks(kind: str) -> tuple[ByoBlockCfg, ...]:
    return tuple(ByoBlockCfg(type=kind, d=1, c=width, s=2, gs=0, br=1.0) for width in (16, 24, 32, 40))


RESNET = {"channels": (8, 16, 24, 32)}
OURS = {
    "acmix_resnet14": RESNET,
    "sasa_resnet14": RESNET,
    "pssa_resnet14": RESNET,
    "xvolution_resnet14": RESNET,
    "acmix_san10": {"layers": (1,) * 5, "widths": (16, 32, 32, 48, 64)},
    "acmix_pvt_tiny": {"embed_dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1)},
    "acmix_swin_tiny": {"embed_dim": 12, "depths": (1, 2, 1, 1)},
}
TIMMS = {
    "resnet10t": RESNET | {"stem_width": 8},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 40), "stem_chs": 16},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "densenet121": {"block_config": (1, 1, 1, 1), "growth_rate": 8},
    "test_efficientnet": {},
    "test_byobnet": {},
    "repvgg_a0": {"blocks": _blocks("rep"), "stem_chs": 16},
    "mobileone_s0": {"blocks": _blocks("one"), "stem_chs": 16},
    "repvit_m0_9": {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)},
    "repghostnet_050": {},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
    "shvit_s1": {"embed_dim": (16, 24, 32), "depth": (1, 1, 1), "partial_dim": (8, 8, 8)},
}
FAMILIES = OURS | TIMMS


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def build(family: str, seed: int = 0, *, features_only: bool = False) -> nn.Module:
    """In eval mode, its statistics and mixes away from where they start."""
    torch.manual_seed(seed)
    options = {"features_only": True} if features_only else {"num_classes": 5}
    return drawn(timm.create_model(family, **FAMILIES[family], **options))


@torch.no_grad()
def drawn(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in net.named_parameters():
        if name.endswith((".alpha", ".beta", "attention_norm.weight")):
            parameter.uniform_(0.5, 1)
    return net.eval()


def converted(net: nn.Module, again: Again) -> nn.Module:
    return convert(net, "xvolution", where=lambda *_: True, example=images()).eval()


def optimized(net: nn.Module, again: Again) -> nn.Module:
    return optimize(net, images())


def exported(net: nn.Module, again: Again) -> nn.Module:
    return torch.export.export(net, (images(),)).module()


def compiled(net: nn.Module, again: Again) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(net, backend="eager", fullgraph=True)


def checkpointing(net: nn.Module, again: Again) -> nn.Module:
    net.set_grad_checkpointing()
    return net


def averaged(net: nn.Module, again: Again) -> nn.Module:
    ema = ModelEmaV3(net, decay=0.5)
    ema.update(net)
    return ema.module


def reloaded(net: nn.Module, again: Again) -> nn.Module:
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = again()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def features(net: nn.Module, again: Again) -> nn.Module:
    """What timm makes of a network for ``features_only=True``."""
    places = net.feature_info if isinstance(net.feature_info, list) else net.feature_info.info
    indices = tuple(range(len(places)))
    if type(net).__name__ in ("PVT", "SAN", "SwinTransformer", "MobileNetV3", "EfficientNet"):
        return FeatureGetterNet(net, out_indices=indices)
    nested = any("." in place["module"] for place in places)
    return FeatureListNet(net, out_indices=indices, flatten_sequential=nested)


FEATURES = {
    "convert": converted,
    "optimize": optimized,
    "export": exported,
    "compile": compiled,
    "checkpointing": checkpointing,
    "EMA": averaged,
    "state dict": reloaded,
    "features_only": features,
}
SLOW = ("export", "compile", "onnx")


def first(family: str, feature: str, seed: int = 0) -> nn.Module:
    """A network with one of them; converted, its attention takes part."""
    if feature == "features_only":
        return build(family, seed, features_only=True)
    net = FEATURES[feature](build(family, seed), lambda: build(family, 7))
    return drawn(net) if feature == "convert" else net


def second(family: str, before: str, feature: str, net: nn.Module) -> nn.Module:
    return FEATURES[feature](net, lambda: first(family, before, 7))


def answers(net: nn.Module) -> list[Tensor]:
    """What it makes of the images, and their gradient."""
    x = images().requires_grad_()
    outputs = [t for t in torch.utils._pytree.tree_leaves(net(x)) if isinstance(t, Tensor)]
    (gradient,) = torch.autograd.grad(sum(t.square().mean() for t in outputs), x)
    return [*(t.detach() for t in outputs), gradient]


def in_onnxruntime(net: nn.Module, file: Path) -> list[np.ndarray]:
    import onnxruntime

    torch.onnx.export(net, (images(),), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images().numpy()})
