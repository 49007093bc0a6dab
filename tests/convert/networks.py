"""The networks that conversion is shown on, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn


def depthwise(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels


def yolo(config: str = "yolov8n.yaml") -> nn.Module:
    # Its import puts functions of its own into Pillow and torch, for the whole process; its open installs packages.
    kept = Image.open, torch.save
    try:
        tasks = pytest.importorskip("ultralytics.nn.tasks", reason="needs ultralytics: pip install 'convattn[dev]'")
    finally:
        Image.open, torch.save = kept
    return tasks.DetectionModel(config, verbose=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet50": torchvision.models.resnet50,
    "timm convnext_tiny": lambda: timm.create_model("convnext_tiny"),
    "timm regnety_002": lambda: timm.create_model("regnety_002"),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "ultralytics yolov8n": yolo,
}
# Their spatial convolutions are depthwise, which ACmix replaces where it is told to.
DEPTHWISE = {"timm convnext_tiny", "timm mobilenetv3_small_050", "timm efficientnet_b0"}


def build(name: str) -> nn.Module:
    """In eval mode, batch norms with statistics and gains of their own."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def images(size: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def tensors(output: object) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor)]


def total(output: object) -> Tensor:
    """A number to minimise."""
    return sum(t.float().square().mean() for t in tensors(output))


def train_step(model: nn.Module) -> list[str]:
    """A step of Adam; the names of the parameters that it moved."""
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    total(model(images())).backward()
    optimizer.step()
    return [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
