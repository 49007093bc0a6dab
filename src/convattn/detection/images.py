"""From images of any size to a batch, and the check of what a training step is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class ImageBatcher(GeneralizedRCNNTransform):
    """Normalise, scale and pad a list of images; torchvision's transform for every size of image.

    An image is scaled so that its shorter side is ``min_size``, or less where the longer one would exceed
    ``max_size``; never below a pixel. The batch is padded to a multiple of the pyramid's stride, and to two cells at
    least, without which a batch norm cannot train on one small image.

    Args:
        min_size: length of the shorter side; several: drawn for each image in training, the last one in eval mode;
            None: images keep their size.
        max_size: greatest length of the longer side.
        mean: of every channel.
        std: of every channel.
        stride: the sides of the batch are multiples of it.

    Raises:
        ValueError: sizes below 1, a ``max_size`` below all of ``min_size``, statistics of different lengths.

    Example:
        >>> import torch
        >>> batcher = ImageBatcher(32, 48, [0.5], [0.5], stride=16).eval()
        >>> batch, _ = batcher([torch.zeros(1, 8, 10), torch.zeros(1, 64, 16)])
        >>> list(batch.tensors.shape), [tuple(size) for size in batch.image_sizes]
        ([2, 1, 48, 48], [(32, 40), (48, 12)])
    """

    def __init__(
        self,
        min_size: int | Sequence[int] | None,
        max_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        stride: int = 32,
    ) -> None:
        sizes = () if min_size is None else (min_size,) if isinstance(min_size, int) else tuple(min_size)
        if min_size is not None and (not sizes or min(sizes) < 1 or max_size < min(sizes)):
            raise ValueError(f"min_size must be 1 or more and at most max_size, got {min_size} and {max_size}")
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean and std must have a number for each channel, std above 0, got {mean} and {std}")
        super().__init__(sizes, max_size, list(mean), list(std), size_divisible=stride)

    def normalize(self, image: Tensor) -> Tensor:
        """``(x - mean) / std`` of an image ``[C, H, W]`` with values of 0 to 1.

        Raises:
            ValueError: another number of channels, an image without pixels.
            TypeError: integers.
        """
        if image.shape[0] != len(self.image_mean) or 0 in image.shape:
            raise ValueError(
                f"an image must be [{len(self.image_mean)}, H, W] of a pixel at least, got {list(image.shape)}"
            )
        return super().normalize(image)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Scale an image and with it its boxes and masks."""
        if not self.min_size:
            return image, target
        height, width = image.shape[-2:]
        shorter = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(shorter / min(height, width), self.max_size / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if size == (height, width):
            return image, target
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if target is None:
            return image, target
        target = {**target, "boxes": resize_boxes(target["boxes"], [height, width], list(size))}
        if "masks" in target:
            masks = target["masks"]
            resized = F.interpolate(masks[:, None].float(), size)[:, 0] if len(masks) else masks.new_zeros(0, *size)
            target["masks"] = resized.to(torch.uint8)
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """``[B, C, H, W]``, each image in the upper left corner, zeros beside it."""
        height, width = (
            max(2, math.ceil(max(image.shape[side] for image in images) / size_divisible)) * size_divisible
            for side in (1, 2)
        )
        batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for image, place in zip(images, batch, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return batch


def check_inputs(images: Any, targets: Any, *, num_classes: int, training: bool, masks: bool) -> None:
    """Whether a detector can be called with these.

    Args:
        images: list of ``[C, H, W]``.
        targets: list of dictionaries as torchvision's: ``boxes`` ``[n, 4]`` (x1, y1, x2, y2), ``labels`` ``[n]`` of 1
            to ``num_classes``, with ``masks`` ``[n, H, W]``.
        num_classes: those of the detector.
        training: whether targets are needed.
        masks: whether each target needs masks.

    Raises:
        ValueError: what is wrong, with the number of the image.
        TypeError: labels that are no integers, images that are no tensors.
    """
    images = list(images)
    if not images:
        raise ValueError("a detector needs an image at least, got none")
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3:
            found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"images must be a list of [C, H, W] tensors; image {index} is {found}")
    if targets is None:
        if training:
            raise ValueError("a detector in training mode needs targets; call .eval() to predict")
        return
    if len(targets) != len(images):
        raise ValueError(f"there must be a target for each image, got {len(targets)} for {len(images)}")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        problem = _problem_of(target, tuple(image.shape[-2:]), num_classes, masks)
        if problem:
            raise ValueError(f"target {index}: {problem}")


def _problem_of(target: Any, size: tuple[int, int], num_classes: int, masks: bool) -> str | None:
    needed = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    missing = [key for key in needed if key not in target]
    if missing:
        return f"no {' and no '.join(missing)}; it has {sorted(target)}"
    wrong = [key for key in needed if not isinstance(target[key], Tensor)]
    if wrong:
        return f"{' and '.join(wrong)} must be tensors, got {type(target[wrong[0]]).__name__}"
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        return f"boxes must be floating-point [n, 4] (x1, y1, x2, y2), got {boxes.dtype} {list(boxes.shape)}"
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        return f"labels must be int64 [{len(boxes)}], one for each box, got {labels.dtype} {list(labels.shape)}"
    if masks and tuple(target["masks"].shape) != (len(boxes), *size):
        return f"masks must be {[len(boxes), *size]}, one of the image's size for each box, " + (
            f"got {list(target['masks'].shape)}"
        )
    if len(boxes) == 0:
        return None
    bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    if bad.any():
        first = int(bad.nonzero()[0])
        return f"box {first} is {boxes[first].tolist()}; boxes must be finite with x2 > x1 and y2 > y1"
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 1 or highest > num_classes:
        return f"labels must lie between 1 and num_classes = {num_classes} (0 is background), got {lowest} to {highest}"
    return None
