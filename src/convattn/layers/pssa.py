"""Pixel shift self-attention: X-volution's attention, linear in the map and without a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from convattn.layers._base import Geometry
from convattn.layers._checks import check_choice, check_division
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers.folding import Folds, batch_norm_line, check_folds, exact, is_pointwise, parameter_like, scaled
from convattn.layers.neighbor_sum import NeighborSum
from convattn.layers.pssa_forms import FoldedProjection, fold_projection
from convattn.ops import Neighborhood, pixel_shift_attention

HeadCount: TypeAlias = int | Literal["channels"]
Reading: TypeAlias = Literal["value", "product"]
ShiftPosition: TypeAlias = Literal["bias"]
Propagation: TypeAlias = Literal["stacked", "summed"]

LENGTHS = (1, 3, 5)
"""L of section 6.1.2, in pixels."""


class PSSA(DropIn, Folds):
    r"""Pixel shift self-attention, X-volution's approximation of attention over the whole map.

    .. math:: y_c(p) = \sum_\delta w_{\delta,c}\, s^{(n)}_\delta(p)\, v_c(p + \delta), \qquad
        s^{(n)}_\delta(p) = \frac{1}{\sqrt{C/N}} \sum_{c' \in n} q_{c'}(p)\, k_{c'}(p + \delta), \qquad
        [q; k; v] = W x,

    n the head of c (see :func:`convattn.ops.pixel_shift_attention`). The offsets are steps in eight directions; zeros
    lie beyond the border. Where it strides, the queries are every ``stride``-th pixel.

    Replaces ``Conv2d(in_channels, out_channels, 3, stride, padding=1)``: same output size for every
    H, W >= 1, same dtypes, devices and layouts. There is no softmax, so the output grows with the cube of the input:
    a batch norm should follow, as in :class:`convattn.layers.XVolution`, and large inputs overflow in float16, where
    bfloat16 does not.

    Source: Chen et al., *X-volution: On the Unification of Convolution and Self-attention*, 2021, section 3.3. The
    authors released no code.

    Args:
        in_channels: C_in.
        out_channels: C.
        num_heads: N; must divide ``out_channels``. 1, the default, is the inner product of two pixels, which eq. 7 to
            9 have; ``"channels"`` is N = C, the product element by element that section 6.1.2 describes.
        reading: ``"value"``: eq. 7 to 9, the similarities weigh the values, and the operator is a convolution whose
            kernel depends on the place; ``"product"``: section 6.1.2 to the letter, the similarities themselves are
            summed, and there is no v.
        propagation: how the neighbours' attention reaches a pixel. ``"stacked"``, the default: by the operators above,
            as section 3.4.3 says where it leaves eq. 7's outer sum out; ``"summed"``: by that sum,
            :math:`y'_c(p) = \sum_k \beta_{k,c}\, y_c(p + k)` over the offsets and the pixel itself, a depthwise
            convolution (:class:`convattn.layers.neighbor_sum.NeighborSum`) that starts as the identity. Where it
            strides, every pixel has a query and the sum strides.
        lengths: of the steps in pixels, 1, 3 and 5 as in section 6.1.2, so 24 offsets. With 0 among them the region
            contains the pixel itself, as A of eq. 3 to 9 does.
        offsets: other offsets ``(dy, dx)`` in place of those of the lengths.
        stride: distance between queries.
        dilation: multiplies the offsets.
        position: ``"bias"``: a learned number for every head and offset is added to s (table 4); None, as in the
            paper's standard operator: none.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``, no offsets or one twice, an unknown option; in
            ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> layer = PSSA(16, 32, num_heads=4, stride=2)
        >>> layer(torch.randn(2, 16, 9, 7)).shape, layer.weight.shape
        (torch.Size([2, 32, 5, 4]), torch.Size([24, 32]))
    """

    reparameterized: FoldedProjection | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_heads: HeadCount = 1,
        reading: Reading = "value",
        propagation: Propagation = "stacked",
        lengths: Sequence[int] = LENGTHS,
        offsets: Sequence[tuple[int, int]] | None = None,
        position: ShiftPosition | None = None,
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        made = self._factory(geometry)
        self.num_heads = head_count(num_heads, out_channels)
        check_choice("reading", reading, Reading)
        if position not in ("bias", None):
            raise ValueError(f"position must be 'bias' or None, got {position!r}")
        check_choice("propagation", propagation, Propagation)
        self.reading, self.propagation = reading, propagation
        self.neighborhood = _neighborhood(lengths, offsets, self.stride, self.dilation)
        self.neighbor_sum: NeighborSum | None = None
        if propagation == "summed":
            region = Neighborhood(((0, 0),), self.stride, "zeros") | self.neighborhood
            self.neighbor_sum = NeighborSum(out_channels, region, **made)
            self.neighborhood = replace(self.neighborhood, stride=(1, 1))
        maps = 3 if reading == "value" else 2
        self.projection = nn.Conv2d(in_channels, maps * out_channels, 1, bias=False, **made)
        taps = len(self.neighborhood)
        self.weight = nn.Parameter(torch.empty(taps, out_channels, **made))
        self.position: nn.Parameter | None = None
        if position is not None:
            self.position = nn.Parameter(torch.empty(self.num_heads, taps, **made))
        self.bias: nn.Parameter | None = None
        self.reparameterized = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weighted sum as ``nn.Conv2d`` draws a depthwise convolution of so many taps, the positions small.

        The sum over the neighbours becomes the identity.
        """
        bound = len(self.neighborhood) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)
        if self.neighbor_sum is not None:
            self.neighbor_sum.reset_parameters()

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        q, k, v = self.project(x)
        out = pixel_shift_attention(
            q, k, v, self.weight, self.neighborhood, num_heads=self.num_heads, bias=self.position
        )
        if self.neighbor_sum is not None:
            out = self.neighbor_sum(out)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``[B, C_in, H, W]`` -> q where the queries are, k and v (None where there is none) at every pixel."""
        if self.reparameterized is not None:
            maps: tuple[Tensor, Tensor, Tensor | None] = self.reparameterized(x)
            return maps
        q, k, *v = self.projection(x).split(self.out_channels, 1)
        return self.neighborhood.centres(q), k, v[0] if v else None

    @torch.no_grad()
    def absorb(self, batch_norm: nn.Module) -> None:
        """Take over the batch norm (in eval mode) that follows: its gain goes into ``weight``, its shift is a bias.

        Raises:
            ValueError: a batch norm without running statistics or of other channels.
        """
        gain, shift = batch_norm_line(batch_norm, self.out_channels)
        self.multiply(gain)
        self.bias = parameter_like(shift if self.bias is None else exact(self.bias) + shift, self.weight)

    @torch.no_grad()
    def multiply(self, gain: Tensor) -> None:
        """Multiply the outputs by ``[C]``."""
        self.weight = scaled(self.weight, gain)
        if self.bias is not None:
            self.bias = scaled(self.bias, gain)

    def value_weight(self) -> Tensor:
        """The matrix from x to v, ``[C, C_in]`` in float64.

        Raises:
            ValueError: the ``"product"`` reading has no v.
        """
        if self.reading != "value":
            raise ValueError("reading='product' has no v")
        if self.reparameterized is not None:
            return self.reparameterized.value_weight()
        return exact(self.projection.weight)[-self.out_channels :].flatten(1)

    def reparameterize(self) -> None:
        """Make q, k and v the cheapest exact way, for inference. In place and for good; a second call does nothing.

        timm's convention, see :meth:`convattn.ACmix.reparameterize`. The fewest multiply-adds of three forms:
        ``"joint"``: one projection, as in training; ``"split"``: q at the queries alone, where the operator strides;
        ``"tied"``: with one head and ``in_channels == out_channels``,
        :math:`q \\cdot k = (W_k^T W_q x_p) \\cdot x_{p+\\delta}`: x itself is the key.

        Raises:
            TypeError: the projection was replaced by something that does not fold.

        Example:
            >>> import torch
            >>> layer, x = PSSA(16, 16), torch.randn(1, 16, 6, 6)
            >>> before = layer(x)
            >>> layer.reparameterize()
            >>> layer.reparameterized.form, bool(torch.allclose(layer(x), before, atol=1e-5))
            ('tied', True)
        """
        self._take_form("auto", self._folded, "projection")

    def _folded(self) -> FoldedProjection:
        conv = self.projection
        if not is_pointwise(conv) or conv.bias is not None:
            raise TypeError(f"reparameterize folds a projection that is a 1x1 nn.Conv2d without bias, got {conv}")
        check_folds(conv)
        return fold_projection(self)

    def extra_repr(self) -> str:
        """What the constructor got."""
        options = f", reading={self.reading!r}" + ("" if self.position is None else ", position='bias'")
        options += "" if self.neighbor_sum is None else f", propagation={self.propagation!r}"
        return (
            f"{self.in_channels}, {self.out_channels}, offsets={len(self.neighborhood)}, num_heads={self.num_heads}, "
            f"stride={self.stride}{options}"
        )


def head_count(num_heads: HeadCount, channels: int) -> int:
    """The number of heads that ``num_heads`` names.

    Raises:
        ValueError: it does not divide the channels, or is no number.

    Example:
        >>> head_count("channels", 64), head_count(4, 64)
        (64, 4)
    """
    if num_heads == "channels":
        num_heads = channels
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise ValueError(f"num_heads must be an integer or 'channels', got {num_heads!r}")
    check_division(channels, num_heads)
    return num_heads


def _neighborhood(
    lengths: Sequence[int],
    offsets: Sequence[tuple[int, int]] | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Neighborhood:
    step_h, step_w = dilation
    steps = Neighborhood.directions(lengths).offsets if offsets is None else offsets
    return Neighborhood(tuple((dy * step_h, dx * step_w) for dy, dx in steps), stride, "zeros")
