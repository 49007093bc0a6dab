"""Label maps of whole images: in one pass, or by windows that slide over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor, nn

from convattn.layers._checks import check_choice
from convattn.ops.neighborhood import IntPair, as_pair
from convattn.segmentation._blocks import resize, size_of

Mode: TypeAlias = Literal["whole", "sliding"]


class Windows(TypedDict, total=False):
    """The options of :func:`predict_logits`."""

    mode: Mode
    window: IntPair
    stride: IntPair | None
    output_size: tuple[int, int] | None


def predict(model: nn.Module, image: Tensor, **windows: Unpack[Windows]) -> Tensor:
    """The most probable class of every pixel: the argmax of :func:`predict_logits`, whose arguments these are.

    Returns:
        ``[H, W]`` or ``[B, H, W]`` int64.

    Example:
        >>> from convattn.segmentation import semantic_fpn
        >>> model = semantic_fpn("conv_resnet14", num_classes=3, pyramid_channels=8, channels=8)
        >>> predict(model, torch.zeros(3, 70, 40), mode="sliding", window=48).shape
        torch.Size([70, 40])
    """
    return predict_logits(model, image, **windows).argmax(-3)


def predict_logits(
    model: nn.Module,
    image: Tensor,
    *,
    mode: Mode = "whole",
    window: IntPair = 512,
    stride: IntPair | None = None,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """The logits of an image of any size, in eval mode and without gradients; the model's own modes are put back.

    Args:
        model: ``[B, 3, H, W]`` -> ``[B, K, H, W]``.
        image: ``[3, H, W]`` or ``[B, 3, H, W]``, normalised, where the model is.
        mode: ``"whole"``: one pass. ``"sliding"``: windows over the image, the logits averaged where they overlap; one
            that would go over the border is shifted inside, and where a window is larger than the image, it is cut to
            the image. For networks that want the size they were trained on, and for images too large for one pass.
        window: height and width of a window, or both.
        stride: from one window to the next; None: two thirds of the window.
        output_size: height and width to bring the logits to, as of the label map of a resized image.

    Returns:
        ``[K, H, W]`` or ``[B, K, H, W]``.

    Raises:
        ValueError: an image of another shape, an unknown mode, a stride that leaves gaps between windows.

    Example:
        >>> from convattn.segmentation import upernet
        >>> model = upernet("conv_resnet14", num_classes=3, channels=8)
        >>> predict_logits(model, torch.zeros(2, 3, 33, 21), output_size=(66, 42)).shape
        torch.Size([2, 3, 66, 42])
    """
    check_choice("mode", mode, Mode)
    if image.dim() not in (3, 4):
        raise ValueError(f"image must be [3, H, W] or [B, 3, H, W], got {tuple(image.shape)}")
    sides, steps = _window_and_stride(window, stride)
    batch = image if image.dim() == 4 else image.unsqueeze(0)
    with _evaluating(model), torch.no_grad():
        logits = model(batch) if mode == "whole" else _slide(model, batch, sides, steps)
        if output_size is not None:
            logits = resize(logits, output_size)
    return logits if image.dim() == 4 else logits.squeeze(0)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side begin, the last shifted so that it ends with the image.

    Example:
        >>> window_starts(10, 4, 3), window_starts(11, 4, 3), window_starts(3, 4, 3)
        ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _slide(model: nn.Module, images: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    height, width = size_of(images)
    rows = window_starts(height, window[0], stride[0])
    columns = window_starts(width, window[1], stride[1])
    total: Tensor | None = None
    count = images.new_zeros(height, width)
    for top in rows:
        for left in columns:
            part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = model(images[part])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[part] += logits
            count[part] += 1
    if total is None:
        raise ValueError(f"no window fits an image of {tuple(images.shape)}")
    return total.div_(count.to(total.dtype))


def _window_and_stride(window: IntPair, stride: IntPair | None) -> tuple[tuple[int, int], tuple[int, int]]:
    sides = as_pair(window, "window")
    steps = (max(1, sides[0] * 2 // 3), max(1, sides[1] * 2 // 3)) if stride is None else as_pair(stride, "stride")
    if min(*sides, *steps) < 1:
        raise ValueError(f"window and stride must be positive, got {sides} and {steps}")
    if steps[0] > sides[0] or steps[1] > sides[1]:
        raise ValueError(f"stride must not be larger than the window, which would leave gaps, got {steps} and {sides}")
    return sides, steps


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then every module's own mode again: some may be frozen in eval mode while the model trains."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
