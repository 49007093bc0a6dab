"""What a network looks at: Grad-CAM, what one pixel attends to, and how strong the paths of its operators are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convattn.explain.attention import AttentionMap, Listener, PathMaps, Place
from convattn.explain.cam import MapRecorder, Size, grad_cam

__all__ = ["AttentionMap", "Explanation", "PathMaps", "Place", "explain"]


class Explanation:
    """What a network looked at in one image.

    Attributes:
        size: height and width of what the network took.
        cam: Grad-CAM, ``[h, w]`` from 0 to 1; None where the score depends on no map.
        cam_layer: the layer that it is of.
        paths: one for each operator with two paths, in order of depth.
    """

    def __init__(self, size: Size, cam: tuple[str, Tensor] | None, listener: Listener) -> None:
        self.size = size
        self.cam_layer = "" if cam is None else cam[0]
        self.cam = None if cam is None else cam[1]
        self.paths = listener.paths()
        self._listener = listener

    def attention_at(self, place: Place) -> list[AttentionMap]:
        """Return what one pixel attends to, in each attention layer; empty where there is none.

        Args:
            place: row and column of the pixel, in what the network took.

        Raises:
            ValueError: a pixel that is not on it.
        """
        parts = place[0] / self.size[0], place[1] / self.size[1]
        if not all(0 <= part < 1 for part in parts):
            raise ValueError(f"the pixel (row {place[0]:g}, column {place[1]:g}) is not on an image of {self.size}")
        return self._listener.attention_at(parts)


def explain(network: nn.Module, score: Callable[[], Tensor]) -> Explanation:
    """Run a network on one image and return what it looked at.

    Grad-CAM (Selvaraju et al., *Grad-CAM*, ICCV 2017) is of the last feature map that the score depends on, of any
    network: maps ``[1, C, h, w]`` and ``[1, h, w, C]``, and tokens ``[1, T, C]``. Attention maps are of this library's
    layers: ACmix, local, window, global, patchwise, pairwise and spatial-reduction attention, and PSSA, X-volution's.
    The weights of each are the derivatives of its output by its values, so they are exact; the map is their mean over
    the channels, and so over the heads. The two paths are those of ACmix and X-volution.

    Args:
        network: the part to look into, in eval mode: a classifier, or the backbone of a detector or segmenter.
        score: runs the network on one image, and returns the number to explain, such as a class's logit.

    Raises:
        ValueError: ``score`` did not run the network, ran it on several images, or returned more than one number.

    Example:
        >>> import convattn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(convattn.ACmix(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        >>> image = torch.randn(1, 3, 9, 12)
        >>> found = explain(net, lambda: net(image)[0, 0])
        >>> found.cam_layer, found.cam.shape, found.paths[0].convolution.shape
        ('1', torch.Size([9, 12]), torch.Size([9, 12]))
        >>> (looked,) = found.attention_at((4, 6))
        >>> looked.layer, looked.weights.shape, round(float(looked.weights.sum()), 3)
        ('0.attention', torch.Size([9, 12]), 1.0)
    """
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with MapRecorder(network) as maps, Listener(network) as listener:
            value = score()
        if maps.size is None:
            raise ValueError("score must run the network on one image [1, C, H, W]: it did not")
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"score must return one number, got {getattr(value, 'shape', type(value).__name__)}")
        cam = grad_cam(value.sum(), maps.outputs, maps.size) if value.requires_grad else None
    return Explanation(maps.size, cam, listener)
