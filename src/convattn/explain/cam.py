"""Grad-CAM of any network: its feature maps are recorded whatever their layout, and weighed by their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]

MOST_PREFIX_TOKENS = 8
"""Class, distillation and register tokens before those of the map, at most."""

MOST_TRIES = 40
"""Maps that are tried, the last first: each takes a backward pass. A block of a vision transformer has about 15."""


class MapRecorder(ExitStack):
    """Keeps the outputs of a network's modules in the order in which they end, and the size of its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.size: Size | None = None
        self.outputs: list[tuple[str, Tensor]] = []
        hooks = [network.register_forward_pre_hook(self._note_size)]
        hooks += [module.register_forward_hook(self._keeper(name)) for name, module in network.named_modules()]
        for hook in hooks:
            self.callback(hook.remove)

    def _note_size(self, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        (image,) = inputs
        if image.dim() != 4 or image.shape[0] != 1:
            raise ValueError(f"one image [1, C, H, W] is explained at a time, got {list(image.shape)}")
        self.size = (image.shape[2], image.shape[3])
        self.outputs.clear()
        # so that there are gradients where all parameters are frozen
        return (image if image.requires_grad else image.detach().requires_grad_(),)

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # a linear layer's output is a query, key or value, or the inside of an MLP
            if isinstance(output, Tensor) and output.requires_grad and not isinstance(module, nn.Linear):
                self.outputs.append((name, output))

        return keep


def grad_cam(score: Tensor, outputs: Sequence[tuple[str, Tensor]], size: Size) -> tuple[str, Tensor] | None:
    """Return Grad-CAM of the last map on which the score depends, and the name of its layer.

    .. math:: L = \\mathrm{ReLU}\\Bigl(\\sum_c \\bar g_c A_c\\Bigr), \\qquad
        \\bar g_c = \\frac{1}{hw} \\sum_{ij} \\frac{\\partial y}{\\partial A_{cij}}

    A vision transformer that reads its class token alone does not depend on the last tokens of its map; there it is
    the map before its last attention.

    Args:
        score: y, a scalar.
        outputs: names and outputs of layers, in order of depth.
        size: of the image.

    Returns:
        the layer, and ``[h, w]`` from 0 to 1; None where the score depends on no map of more than one pixel.
    """
    tried = 0
    for name, output in reversed(outputs):
        features = as_feature_map(output.detach(), size)
        if features is None:
            continue
        if tried == MOST_TRIES:
            break
        tried += 1
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
        gradients = None if gradient is None else as_feature_map(gradient, size)
        if gradients is None:
            continue
        cam = (gradients.float().mean((1, 2), keepdim=True) * features.float()).sum(0).relu()
        if cam.isfinite().all() and cam.any():
            return name, (cam / cam.max()).cpu()
    return None


def as_feature_map(output: Tensor, size: Size) -> Tensor | None:
    """Return a layer's output as ``[C, h, w]``; None where it is no map of an image of that size.

    Example:
        >>> shapes = (1, 64, 7, 10), (1, 7, 10, 64), (1, 71, 64), (1, 64, 1, 1), (3, 64, 7, 10)
        >>> found = [as_feature_map(torch.zeros(shape), (224, 320)) for shape in shapes]
        >>> [None if one is None else list(one.shape) for one in found]
        [[64, 7, 10], [64, 7, 10], [64, 7, 10], None, None]
    """
    if output.dim() not in (3, 4) or output.shape[0] != 1:
        return None
    one = output[0]
    if one.dim() == 2:
        return _of_tokens(one, size)
    if _fits((one.shape[1], one.shape[2]), size):
        return one
    return one.permute(2, 0, 1) if _fits((one.shape[0], one.shape[1]), size) else None


def _of_tokens(tokens: Tensor, size: Size) -> Tensor | None:
    for prefix in range(MOST_PREFIX_TOKENS + 1):
        count = tokens.shape[0] - prefix
        height = round(sqrt(max(count, 0) * size[0] / size[1]))
        if height and count % height == 0 and _fits((height, count // height), size):
            return tokens[prefix:].t().unflatten(1, (height, count // height))
    return None


def _fits(found: Size, size: Size) -> bool:
    """Whether a map of more than one pixel can be the image made smaller, each side rounded."""
    (height, width), (image_height, image_width) = found, size
    if height * width <= 1 or height > image_height or width > image_width:
        return False
    return abs(height * image_width - width * image_height) < max(size)
