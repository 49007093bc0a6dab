"""Semantic segmentation on any of timm's backbones: Semantic-FPN and UPerNet, their inference and mean IoU.

Example:
    >>> import torch
    >>> from convattn.segmentation import MeanIoU, predict, upernet
    >>> model = upernet("conv_resnet14", num_classes=5, channels=8)
    >>> image, labels = torch.rand(3, 65, 47), torch.randint(5, (65, 47))
    >>> sum(model(image[None], labels[None]).values()).backward()
    >>> metric = MeanIoU(5)
    >>> metric.update(predict(model, image)[None], labels[None])
    >>> 0 <= metric.compute()["mean_iou"] <= 1
    tensor(True)
"""

from convattn.segmentation.backbones import FeatureLevels
from convattn.segmentation.inference import predict, predict_logits
from convattn.segmentation.metrics import MeanIoU
from convattn.segmentation.segmenter import AuxiliaryHead, Segmenter
from convattn.segmentation.semantic_fpn import SemanticFPNDecoder, semantic_fpn
from convattn.segmentation.upernet import PyramidPooling, UPerNetDecoder, upernet

__all__ = [
    "AuxiliaryHead",
    "FeatureLevels",
    "MeanIoU",
    "PyramidPooling",
    "Segmenter",
    "SemanticFPNDecoder",
    "UPerNetDecoder",
    "predict",
    "predict_logits",
    "semantic_fpn",
    "upernet",
]
