"""A weighted sum over each pixel's neighbours, channel by channel: the outer sum of X-volution's eq. 7."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from functools import reduce
from itertools import starmap
from typing import Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Layer
from convattn.layers.static_convolution import smallest_window
from convattn.ops import Neighborhood, _dispatch
from convattn.ops._layout import accumulation_dtype
from convattn.ops.dynamic_conv import spread_taps
from convattn.ops.shift.eager import by_convolution


class NeighborSum(Layer):
    r"""A depthwise convolution over any offsets.

    .. math:: y_c(p) = \sum_k \beta_{k,c}\, x_c(p + k)

    It starts as the identity: :math:`\beta` is 1 at the centre and 0 elsewhere. Offsets at one distance from the
    centre run as one depthwise convolution, so the 25 offsets of the centre and three rings take 27 products.

    Args:
        channels: C.
        neighborhood: the offsets, the centre among them, the stride and zeros beyond the border.

    Raises:
        ValueError: a neighbourhood without the centre.

    Example:
        >>> import torch
        >>> layer, x = NeighborSum(2, Neighborhood.directions((0, 1, 3))), torch.randn(1, 2, 5, 7)
        >>> layer.weight.shape, bool(torch.equal(layer(x), x))
        (torch.Size([17, 2]), True)
    """

    def __init__(self, channels: int, neighborhood: Neighborhood, **made: Unpack[Factory]) -> None:
        super().__init__()
        if (0, 0) not in neighborhood.offsets:
            raise ValueError("the sum over the neighbours contains the pixel itself: add the offset (0, 0)")
        self.neighborhood = neighborhood
        self.weight = nn.Parameter(torch.empty(len(neighborhood), channels, **self._factory(made)))
        self._rings = rings(neighborhood)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it the identity."""
        with torch.no_grad():
            self.weight.zero_()
            self.weight[self.neighborhood.offsets.index((0, 0))] = 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``, in the dtype of ``x`` under autocast too."""
        nbhd = self.neighborhood.on_map(x.shape[2], x.shape[3])
        parts = self._rings if nbhd is self.neighborhood else rings(nbhd)
        wide, weight = x.to(accumulation_dtype(x.dtype)), self.weight.t().unsqueeze(1)

        def of_ring(places: list[int], ring: Neighborhood) -> Tensor:
            kernel, dilation = smallest_window(ring)
            window = Neighborhood.window(kernel, dilation=dilation)
            taps = spread_taps(weight[..., places, None, None], ring, window)[..., 0, 0].unflatten(2, kernel)
            return by_convolution(wide, taps.to(wide.dtype), x.shape[1], nbhd.stride, dilation)

        # autocast to float16 would round what pixel_shift_attention returns in float32 since float16 overflows
        with torch.autocast(x.device.type, enabled=False) if _dispatch.is_autocast(x) else nullcontext():
            return reduce(torch.add, starmap(of_ring, parts)).to(x.dtype)

    def extra_repr(self) -> str:
        """What it holds."""
        return f"offsets={len(self.neighborhood)}, stride={self.neighborhood.stride}"


def rings(nbhd: Neighborhood) -> list[tuple[list[int], Neighborhood]]:
    """The offsets by how many steps they are from the centre, the centre with the nearest: places and neighbourhoods.

    A step is the smallest distance along an axis, so that a dilated ring is one too.

    Example:
        >>> [smallest_window(ring) for _, ring in rings(Neighborhood.directions((0, 1, 3)))]
        [((3, 3), (1, 1)), ((3, 3), (3, 3))]
    """
    steps = [smallest_window(nbhd)[1][axis] for axis in (0, 1)]
    at: dict[int, list[int]] = defaultdict(list)
    for place, offset in enumerate(nbhd.offsets):
        at[max(abs(distance) // step for distance, step in zip(offset, steps, strict=True))].append(place)
    centre, *others = (at[distance] for distance in sorted(at))
    groups = [centre + others[0], *others[1:]] if others else [centre]
    return [(places, Neighborhood(tuple(nbhd.offsets[p] for p in places), border="zeros")) for places in groups]
