"""Intersection over union of a whole data set."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from convattn.segmentation._blocks import check_positive
from convattn.segmentation.segmenter import IGNORE_INDEX, check_ignore_index


class MeanIoU(MulticlassConfusionMatrix):
    """Mean intersection over union as ADE20K reports it: pixels are counted over all images, then IoU is taken.

    With n_ij the pixels of class i that were called j: IoU_i = n_ii / (Σ_j n_ij + Σ_j n_ji − n_ii). The mean is over
    the classes that occur, in the labels or the predictions; a mean of every image's own IoU is another number. The
    mean equals torchmetrics' ``MulticlassJaccardIndex(num_classes, ignore_index=ignore_index)``, and ``compute`` gives
    what else the counts hold. Counts are int64 and add up over processes.

    Args:
        num_classes: K.
        ignore_index: the label of pixels that are left out, whatever was predicted there.
        **options: those of ``torchmetrics.Metric``, such as ``sync_on_compute``.

    Raises:
        ValueError: an ``ignore_index`` that is a class; in ``update``: labels or predictions out of range.

    Example:
        >>> import torch
        >>> metric = MeanIoU(3)
        >>> metric.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 1, 255]]]))
        >>> result = metric.compute()
        >>> result["mean_iou"].item(), result["iou"].tolist(), result["pixel_accuracy"].item()
        (0.25, [0.5, 0.0, nan], 0.5)
    """

    def __init__(self, num_classes: int, *, ignore_index: int = IGNORE_INDEX, **options: Any) -> None:
        check_positive(num_classes=num_classes)
        check_ignore_index(ignore_index, num_classes)
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **options)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of some images.

        Args:
            preds: logits ``[B, K, H, W]`` or label maps ``[B, H, W]``.
            target: label maps ``[B, H, W]``.

        Raises:
            ValueError: shapes that do not fit each other, labels out of range.
        """
        labels = preds.argmax(1) if preds.dim() == target.dim() + 1 else preds
        if labels.shape != target.shape:
            raise ValueError(
                f"predictions must be [B, H, W] or [B, K, H, W] for labels [B, H, W], got {tuple(preds.shape)} for "
                f"{tuple(target.shape)}"
            )
        counted = target != self.ignore_index
        labels, target = labels[counted].long(), target[counted].long()
        for name, values in {"target": target, "prediction": labels}.items():
            if values.numel() and not 0 <= values.min() <= values.max() < self.num_classes:
                wrong = values[(values < 0) | (values >= self.num_classes)].unique().tolist()
                raise ValueError(
                    f"every {name} must be in [0, {self.num_classes}) or {self.ignore_index} (left out), got {wrong}"
                )
        if labels.numel():
            super().update(labels, target)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """What all pixels so far give.

        Returns:
            ``"mean_iou"``; ``"iou"`` ``[K]`` by class, NaN where a class occurs neither in labels nor in predictions;
            ``"class_accuracy"`` ``[K]``, n_ii / Σ_j n_ij, NaN where a class is not in the labels; and
            ``"pixel_accuracy"``. All NaN before the first pixel.
        """
        counts: Tensor = self.confmat
        right, of_class, called = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = right / (of_class + called - right)
        return {
            "mean_iou": iou.nanmean(),
            "iou": iou,
            "class_accuracy": right / of_class,
            "pixel_accuracy": right.sum() / counts.sum(),
        }
