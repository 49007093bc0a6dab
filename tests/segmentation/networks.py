"""Tiny segmenters on every backbone family."""

import timm
import torch

import convattn.models  # noqa: F401  registers the networks
from convattn.segmentation import semantic_fpn, upernet

CLASSES = 5
BACKBONES = {
    "acmix_resnet14": {"channels": (8, 8, 16, 16)},
    "san10": {"widths": (16, 16, 16, 32, 32), "layers": (1, 1, 1, 1, 1)},
    "acmix_pvt_tiny": {"embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)},
    "acmix_swin_tiny": {"embed_dim": 12, "depths": (1, 1, 1, 1)},
    "resnet10t": {"channels": (8, 8, 16, 16)},
    # timm's Swin gives its maps as [B, H, W, C]
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": (1, 1, 1, 1), "strict_img_size": False},
}
SEGMENTERS = {
    "semantic_fpn": (semantic_fpn, {"pyramid_channels": 8, "channels": 8}),
    "upernet": (upernet, {"channels": 8, "auxiliary_channels": 8}),
}


def backbone(name="resnet10t", **options):
    return timm.create_model(name, features_only=True, **(BACKBONES.get(name, {}) | options))


def segmenter(kind, name="resnet10t", **options):
    """With classes that differ: as drawn, the classifiers are nearly flat and a comparison would say little."""
    build, tiny = SEGMENTERS[kind]
    torch.manual_seed(0)
    model = build(backbone(name), **({"num_classes": CLASSES} | tiny | options))
    for part, parameter in model.named_parameters():
        if "classifier" in part and parameter.dim() > 1:
            torch.nn.init.normal_(parameter)
    return model


def images_and_labels(size=(67, 45), batch=2):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (batch, *size), generator=generator)
    labels[:, :3] = 255
    return torch.randn(batch, 3, *size, generator=generator), labels
