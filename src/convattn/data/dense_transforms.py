"""From an image with its objects or its label map to tensors, by torchvision's transforms v2.

Training transforms draw from torch's global generator, so seeding that fixes the result.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from convattn.data.coco import Target
from convattn.data.fields import SETTINGS, Number, Part, Whole, between
from convattn.data.segmentation import IGNORE

Photometric = Literal["none", "distort"]
"""Whether colours are changed: "distort" draws brightness, contrast, saturation and hue, as SSD does."""

DetectionTransform = Callable[[Image.Image, Target], tuple[Tensor, Target]]
SegmentationTransform = Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]]

LARGEST_SIDE = 2**14
"""The longest side of an image, in pixels."""

Side: TypeAlias = Annotated[Whole, between(1, LARGEST_SIDE)]

CATEGORY_TRIES = 10

PER_OBJECT = ("labels", "area", "iscrowd")


@dataclass(frozen=True, config=SETTINGS)
class DetectionAugmentation:
    """The random part of a training image's transform for detection.

    Args:
        horizontal_flip: How often an image is mirrored.
        short_sides: The shorter side is drawn from these (multi-scale training); empty keeps the size, and the
            detector's own transform resizes.
        max_size: The longer side's limit where ``short_sides`` resize.
        photometric: Whether colours are changed.
    """

    horizontal_flip: Part = 0.5
    short_sides: tuple[Side, ...] = ()
    max_size: Side = 1333
    photometric: Photometric = "none"


@dataclass(frozen=True, config=SETTINGS)
class SegmentationAugmentation:
    """The random part of a training image's transform for segmentation; the defaults are those of ADE20K's recipes.

    Args:
        crop: (height, width) of what the network sees; smaller images are padded, the padding counts nowhere.
        scale: The image is first resized to this part of its size, drawn evenly.
        horizontal_flip: How often an image is mirrored.
        photometric: Whether colours are changed.
        max_category: Another crop is drawn while one class fills more than this part of its labelled pixels.
    """

    crop: tuple[Side, Side] = (512, 512)
    scale: tuple[Annotated[Number, between(0, 100)], Annotated[Number, between(0, 100)]] = (0.5, 2.0)
    horizontal_flip: Part = 0.5
    photometric: Photometric = "distort"
    max_category: Part = 0.75


def detection_eval_transform() -> DetectionTransform:
    """Return the transform for evaluation: the image as float [3, H, W] of 0 to 1, its target as it is.

    Torchvision's detectors resize and normalise themselves.

    Example:
        >>> image, target = detection_eval_transform()(Image.new("RGB", (4, 3)), {"boxes": torch.zeros(0, 4)})
        >>> image.shape, image.dtype
        (torch.Size([3, 3, 4]), torch.float32)
    """
    return _tensors


def detection_train_transform(augmentation: DetectionAugmentation | None = None) -> DetectionTransform:
    """Return the random transform for training: boxes and masks follow the image, crowds are left out.

    The image comes as float [3, H, W] of 0 to 1. ``area`` follows the resizing; objects that vanish are dropped with
    all that belongs to them; an image without objects stays.

    Example:
        >>> target = {"boxes": torch.tensor([[0., 0., 2., 3.]]), "labels": torch.tensor([1])}
        >>> target |= {"area": torch.tensor([6.]), "image_id": torch.tensor(5), "iscrowd": torch.tensor([0])}
        >>> transform = detection_train_transform(DetectionAugmentation(horizontal_flip=1, short_sides=(6,)))
        >>> image, target = transform(Image.new("RGB", (4, 3)), target)
        >>> image.shape, target["boxes"].tolist(), target["area"].tolist()
        (torch.Size([3, 6, 8]), [[4.0, 0.0, 8.0, 6.0]], [24.0])
    """
    augmentation = augmentation or DetectionAugmentation()
    steps: list[nn.Module] = []
    if augmentation.horizontal_flip > 0:
        steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
    if augmentation.short_sides:
        steps.append(v2.RandomShortestSize(list(augmentation.short_sides), max_size=augmentation.max_size))
    steps += _photometric(augmentation.photometric)
    steps.append(v2.ClampBoundingBoxes())
    change = v2.Compose(steps)

    def transform(image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        pixels, target = _tensors(image, without_crowds(target))
        height, width = pixels.shape[-2:]
        wrapped: dict[str, Any] = dict(target)
        wrapped["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        if "masks" in target:
            wrapped["masks"] = tv_tensors.Mask(target["masks"])
        changed, wrapped = change(tv_tensors.Image(pixels), wrapped)
        found: Target = {name: value.as_subclass(Tensor) for name, value in wrapped.items()}
        new_height, new_width = changed.shape[-2:]
        found["area"] = found["area"] * (new_height * new_width / (height * width))
        return changed.as_subclass(Tensor), _present(found)

    return transform


def without_crowds(target: Target) -> Target:
    """Return a target without its crowds, which detectors do not learn from.

    Example:
        >>> without_crowds({"labels": torch.tensor([3, 4]), "iscrowd": torch.tensor([0, 1])})["labels"].tolist()
        [3]
    """
    return _chosen(target, target["iscrowd"] == 0)


def segmentation_eval_transform(mean: Sequence[float], std: Sequence[float]) -> SegmentationTransform:
    """Return the transform for evaluation: the whole image, normalised, and its label map, int64 [H, W].

    Example:
        >>> transform = segmentation_eval_transform((0.5,) * 3, (0.5,) * 3)
        >>> image, labels = transform(Image.new("RGB", (4, 3)), np.zeros((3, 4)))
        >>> image.shape, labels.dtype
        (torch.Size([3, 3, 4]), torch.int64)
    """
    normalize = v2.Normalize(list(mean), list(std))

    def transform(image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        return normalize(_pixels(image)), torch.from_numpy(np.asarray(labels, np.int64))

    return transform


def image_transform(mean: Sequence[float] = (), std: Sequence[float] = ()) -> Callable[[Image.Image], Tensor]:
    """Return the transform of an image alone: float [3, H, W] of 0 to 1, normalised where statistics are given.

    Example:
        >>> image_transform()(Image.new("RGB", (4, 3), "white")).amin().item()
        1.0
    """
    normalize = v2.Normalize(list(mean), list(std)) if mean else nn.Identity()
    return lambda image: normalize(_pixels(image))


def segmentation_train_transform(
    mean: Sequence[float], std: Sequence[float], augmentation: SegmentationAugmentation | None = None
) -> SegmentationTransform:
    """Return the random transform for training: resize, crop with padding, mirror, change colours, normalise.

    Example:
        >>> transform = segmentation_train_transform((0.5,) * 3, (0.5,) * 3, SegmentationAugmentation(crop=(8, 16)))
        >>> image, labels = transform(Image.new("RGB", (5, 4)), np.ones((4, 5)))
        >>> image.shape, labels.shape, sorted(set(labels.flatten().tolist()))
        (torch.Size([3, 8, 16]), torch.Size([8, 16]), [1, 255])
    """
    augmentation = augmentation or SegmentationAugmentation()
    steps = [v2.RandomHorizontalFlip(augmentation.horizontal_flip), *_photometric(augmentation.photometric)]
    change, normalize = v2.Compose(steps), v2.Normalize(list(mean), list(std))

    def transform(image: Image.Image, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels, ids = _pixels(image), torch.from_numpy(np.asarray(labels, np.int64))
        pixels, ids = _resized(pixels, ids, _uniform(*augmentation.scale))
        pixels, ids = _cropped(pixels, ids, augmentation)
        changed, mask = change(tv_tensors.Image(pixels), tv_tensors.Mask(ids))
        height, width = augmentation.crop
        padding = [0, 0, width - changed.shape[-1], height - changed.shape[-2]]
        # Padded after normalising: zero is the mean colour.
        image_out = v2.functional.pad(normalize(changed.as_subclass(Tensor)), padding)
        return image_out, v2.functional.pad(mask.as_subclass(Tensor)[None], padding, fill=IGNORE)[0]

    return transform


def collate_detection(batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Return a batch as torchvision's detectors take it: a list of images, a list of targets.

    Example:
        >>> images, targets = collate_detection([(torch.zeros(3, 4, 4), {}), (torch.zeros(3, 8, 6), {})])
        >>> len(images), len(targets)
        (2, 2)
    """
    return [image for image, _ in batch], [target for _, target in batch]


def _pixels(image: Image.Image) -> Tensor:
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)


def _tensors(image: Image.Image, target: Target) -> tuple[Tensor, Target]:
    return _pixels(image), dict(target)


def _photometric(mode: Photometric) -> list[nn.Module]:
    return [v2.RandomPhotometricDistort()] if mode == "distort" else []


def _chosen(target: Target, keep: Tensor) -> Target:
    """Return a target with some of its objects, and all that belongs to them."""
    every = ("boxes", "masks", *PER_OBJECT)
    return {name: value[keep] if name in every else value for name, value in target.items()}


def _present(target: Target) -> Target:
    """Drop the objects of which nothing is left: no width or height, or no pixel in the mask."""
    boxes = target["boxes"]
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    if "masks" in target:
        keep &= (target["masks"] != 0).flatten(1).any(1)
    return _chosen(target, keep)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _resized(pixels: Tensor, ids: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    size = [max(1, round(side * scale)) for side in ids.shape]
    nearest = v2.InterpolationMode.NEAREST
    return v2.functional.resize(pixels, size), v2.functional.resize(ids[None], size, interpolation=nearest)[0]


def _cropped(pixels: Tensor, ids: Tensor, augmentation: SegmentationAugmentation) -> tuple[Tensor, Tensor]:
    """Crop where no class fills too much of the labelled pixels, or where the last try happens to be."""
    height, width = (min(side, whole) for side, whole in zip(augmentation.crop, ids.shape, strict=True))
    for _ in range(CATEGORY_TRIES):
        top = int(torch.randint(ids.shape[0] - height + 1, ()))
        left = int(torch.randint(ids.shape[1] - width + 1, ()))
        window = (..., slice(top, top + height), slice(left, left + width))
        part = ids[window]
        counts = torch.bincount(part[part != IGNORE])
        if (counts > 0).sum() > 1 and counts.max() < augmentation.max_category * counts.sum():
            break
    return pixels[window], ids[window]
