"""Tiny networks to export: every family, head and exporter meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

import convattn.models  # noqa: F401  registers the networks
from convattn import detection
from tests.models.test_tracing import NETWORKS
from tests.segmentation.networks import segmenter

SUFFIXES = (".onnx", ".xml", ".pt2", ".torchscript")
PACKAGES = {".onnx": ("onnx", "onnxruntime"), ".xml": ("onnx", "openvino")}
"""What a file's exporter and runtime need beside torch."""

CLASSIFIERS = NETWORKS
IN_ONNX = [name for name in CLASSIFIERS if name != "halo_resnet14"]
"""What torch's ONNX exporter takes: timm's halo attention calls ``Tensor.unfold``."""
HEADS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
SEGMENTERS = ("semantic_fpn", "upernet")

DETECTOR = {
    "backbone_args": {"channels": (8, 8, 16, 16)},
    "channels": 16,
    "min_size": 64,
    "max_size": 96,
    "score_threshold": 0.05,
    "detections_per_image": 20,
}


def needs(suffix: str) -> None:
    """Skip without the packages of a format."""
    for package in PACKAGES.get(suffix, ()):
        pytest.importorskip(package, reason="needs pip install 'convattn[export]'")


def classifier(name: str = "acmix_resnet14") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **CLASSIFIERS[name]).eval()


def detector(head: str, backbone: str = "acmix_resnet14") -> nn.Module:
    """With scores that differ: as drawn they are all alike, and rounding would choose the objects."""
    torch.manual_seed(0)
    build: Callable[..., Any] = getattr(detection, head)
    model = build(backbone, 3, **DETECTOR, **({} if head == "retinanet" else {"fc_channels": 16})).eval()
    for name, parameter in model.named_parameters():
        if "cls" in name:
            nn.init.normal_(parameter, std=0.5) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return model


def segmenter_of(head: str) -> nn.Module:
    return segmenter(head).eval()
