"""Tiny detectors, images and targets."""

import timm
import torch

from convattn import detection

BACKBONES = {
    "acmix_resnet14": {"channels": (8, 16, 24, 32)},
    "conv_resnet14": {"channels": (8, 16, 24, 32)},
    "san10": {"layers": (1, 1, 1, 1, 1), "widths": (16, 32, 32, 48, 64)},
    "acmix_san10": {"layers": (1, 1, 1, 1, 1), "widths": (16, 32, 32, 48, 64)},
    "pvt_v1_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)},
    "acmix_pvt_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)},
    "swin_tiny": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "acmix_swin_tiny": {"depths": (1, 1, 2, 1), "embed_dim": 12},
    "resnet10t": {"channels": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
}
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
CLASSES = 3


def detector(name, backbone="acmix_resnet14", **options):
    """A detector of 16 channels for images as they are."""
    small = {"channels": 16, "min_size": None, "anchor_scale": 2.0, "backbone_args": BACKBONES.get(backbone)}
    if name != "retinanet":
        small |= {"fc_channels": 16, "proposals": (40, 20), "regions_per_image": 16}
    return getattr(detection, name)(backbone, CLASSES, **(small | options))


def features_only(name, **arguments):
    return timm.create_model(name, features_only=True, **(BACKBONES.get(name, {}) | arguments))


def target(size, boxes, labels):
    """With masks that fill the boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


def batch():
    """Two images of odd sizes; the second shows nothing."""
    images = [torch.rand(3, 37, 53), torch.rand(3, 33, 1)]
    return images, [target((37, 53), [[3, 4, 20, 30], [25.5, 2, 50, 19]], [1, CLASSES]), target((33, 1), [], [])]
