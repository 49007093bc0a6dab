"""The part of a network that a file holds: tensors in, tensors out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from convattn import ops
from convattn.errors import UserError, first_line
from convattn.export.report import Operators
from convattn.optimize import optimize

DETECTORS = (RetinaNet, GeneralizedRCNN)


class Program(nn.Module):
    """A folded network whose output is one tensor, or several in a tuple.

    Args:
        network: in eval mode.
        names: of the outputs.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``[B, 3, H, W]`` -> what the network makes of it."""
        outputs = [leaf for leaf in tree_leaves(self.network(images)) if isinstance(leaf, Tensor)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class DetectorProgram(Program):
    """A detector for one image that has the size which the detector works at: boxes after suppression.

    What belongs to the image as it came stays outside, in :class:`convattn.export.runtime.RuntimeDetector`: scaling
    it, scaling the boxes back, and pasting the masks. So the file takes any size, and is made of standard operators.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, ("boxes", "scores", "labels"))
        network.transform = _OneImage(network.transform)
        stages = getattr(network, "roi_heads", None)
        last = stages.stages[-1] if stages is not None and hasattr(stages, "stages") else stages
        if last is not None and last.has_mask():
            self.names = (*self.names, "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``[1, 3, H, W]``, values of 0 to 1 -> boxes ``[d, 4]``, scores, labels ``[d]``, masks ``[d, 1, 28, 28]``."""
        found = self.network([images[0]])[0]
        return tuple(found[name] for name in self.names)


class _OneImage(GeneralizedRCNNTransform):
    """Normalises and pads an image of any size, in steps that a recorded program repeats for other sizes."""

    def __init__(self, of: Any) -> None:
        super().__init__((), of.max_size, of.image_mean, of.image_std, size_divisible=of.size_divisible)

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        """One image ``[C, H, W]`` -> a batch of it."""
        image = self.normalize(images[0])
        stride, (height, width) = int(self.size_divisible), (image.shape[1], image.shape[2])
        tall, wide = (_at_least_two((side + stride - 1) // stride) * stride for side in (height, width))
        batch = F.pad(image, (0, wide - width, 0, tall - height))[None]
        return ImageList(batch, [(height, width)]), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """The boxes as they are: of the image that came in."""
        return result


def _at_least_two(cells: Any) -> Any:
    """As :class:`convattn.detection.images.ImageBatcher` pads; a recorded size is a tensor."""
    return cells.clamp(min=2) if isinstance(cells, Tensor) else max(2, cells)


def answers(network: nn.Module, images: Tensor, *, detects: bool) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """A network's tensors; a detector's objects on the first image."""
    with torch.no_grad():
        if detects:
            found: dict[str, Tensor] = network([images[0]])[0]
            return found
        return tuple(leaf for leaf in tree_leaves(network(images)) if isinstance(leaf, Tensor))


def program_of(model: nn.Module, example: Tensor, operators: Operators = "standard") -> Program:
    """A folded copy of a network as a program.

    Args:
        model: in eval mode.
        example: ``[B, C, H, W]``.
        operators: what the program will be made of: the forms of the folded network are the cheapest for these.

    Raises:
        UserError: the network does not take the example, or gives no tensors.
    """
    detects = isinstance(model, DETECTORS)
    with refusals_named(example):
        outputs = answers(model, example, detects=detects)
        with warnings.catch_warnings(), ops.backend("portable") if operators == "standard" else nullcontext():
            # the file is compared with the network as it came, so a difference is found there
            warnings.simplefilter("ignore")
            folded = optimize(model, ([example[0]] if detects else example,))
    if detects:
        return DetectorProgram(folded).eval()
    if not outputs:
        raise UserError(f"the network {type(model).__name__} gives no tensors, so there is nothing to export")
    names = ["logits"] if len(outputs) == 1 else [f"output_{place}" for place in range(len(outputs))]
    return Program(folded, names).eval()


@contextmanager
def refusals_named(images: Tensor) -> Iterator[None]:
    """Say of which size images were that a network refused."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        why = first_line(error)
        size = "x".join(map(str, images.shape[2:]))
        raise UserError(f"the network does not take images of {size}: {why}; give a size that it takes") from error
