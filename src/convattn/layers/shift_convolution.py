"""The convolution path of ACmix, and a convolution written as its two stages."""

from __future__ import annotations

import copy
from typing import Literal, TypeAlias, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._base import Geometry, StridedLayer
from convattn.layers._checks import check_division, check_odd
from convattn.layers._drop_in import DropIn, takes_maps
from convattn.layers.folding import scaled
from convattn.ops import one_hot_kernel, shift_aggregate
from convattn.ops.neighborhood import IntPair

ShiftKind: TypeAlias = Literal["learnable", "random", "single", "single-random", "fixed", "tensor"]
SHIFTS: tuple[ShiftKind, ...] = get_args(ShiftKind)


class ShiftConvolution(StridedLayer):
    r"""The convolution path: a fully connected layer over the heads, then shift and sum (ACmix fig. 2c and 3).

    The 3N maps of a head channel become k² maps by one matrix that all head channels share, and each of these moves
    toward its tap. With free kernels every head channel's k² maps give N outputs, so output channel ``d * N + n``
    belongs to head channel d (the attention path's channel is ``n * head_dim + d``; both as in the authors' code).
    Zeros lie beyond the border. k and v may be smaller than q (spatial reduction): their part of the k² maps is
    enlarged to q's size, every pixel taking the nearest.

    Args:
        channels: C of q, k, v and of the output.
        kernel_size: k, odd.
        num_heads: N.
        stride: distance between outputs.
        dilation: distance between taps.
        maps: how many maps of ``channels / N`` channels q, k and v have together; None: 3N.
        bias: the fully connected layer adds a learned number to each of its k² outputs (as in Swin-ACmix).
        shift: table 7 and figure 3. ``"learnable"``: free kernels that start as shifts, N for every head channel
            (3c III); ``"random"``: the same, started at random; ``"single"``: one free kernel for every head channel
            that starts as a shift (3c II); ``"single-random"``: the same, started at random (table 7's third row);
            ``"fixed"``: one-hot kernels that stay (3c I); ``"tensor"``: tensors are moved (3a). The last four have
            one output a head channel, which is repeated N times, as it is in ``"learnable"`` before training.

    Raises:
        ValueError: an even kernel, channels that the heads do not divide, an unknown kind of shift.

    Example:
        >>> import torch
        >>> q = k = v = torch.randn(1, 8, 5, 5)
        >>> ShiftConvolution(8, num_heads=2)(q, k, v).shape
        torch.Size([1, 8, 5, 5])
    """

    shown = ("kernel_size", "num_heads", "maps", "stride", "dilation", "shift")

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: IntPair = 3,
        num_heads: int = 4,
        maps: int | None = None,
        bias: bool = False,
        shift: ShiftKind = "learnable",
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(**geometry)
        made = self._factory(geometry)
        check_division(channels, num_heads)
        if maps is not None and maps < 1:
            raise ValueError(f"maps must be at least 1, got {maps}; None means 3 for every head")
        if shift not in SHIFTS:
            raise ValueError(f"shift must be one of {', '.join(map(repr, SHIFTS))}, got {shift!r}")
        self.kernel_size = check_odd(kernel_size)
        self.num_heads, self.head_dim, self.shift = num_heads, channels // num_heads, shift
        self.maps = 3 * num_heads if maps is None else maps
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.fc = nn.Parameter(torch.empty(taps, self.maps, **made))
        self.fc_bias = nn.Parameter(torch.empty(taps, **made)) if bias else None
        self.kernel: nn.Parameter | None = None
        if shift not in ("fixed", "tensor"):
            outputs = channels if self.has_kernel_by_output else self.head_dim
            self.kernel = nn.Parameter(torch.empty(outputs, taps, *self.kernel_size, **made))
        self.reset_parameters()

    @property
    def has_kernel_by_output(self) -> bool:
        """Whether every output has a free kernel, N of a head channel; else its N outputs are one sum."""
        return self.shift in ("learnable", "random")

    def reset_parameters(self) -> None:
        """Draw the fully connected layer; the kernels become shifts (eq. 15), or random where so asked."""
        nn.init.kaiming_uniform_(self.fc, a=5**0.5)
        if self.fc_bias is not None:
            nn.init.uniform_(self.fc_bias, -(self.maps**-0.5), self.maps**-0.5)
        if self.kernel is None:
            return
        if self.shift in ("random", "single-random"):
            nn.init.kaiming_uniform_(self.kernel, a=5**0.5)
        else:
            with torch.no_grad():
                self.kernel.copy_(one_hot_kernel(self.kernel_size, device=self.kernel.device, dtype=self.kernel.dtype))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q ``[B, C_q, H, W]``, k and v, all their channels making the maps -> ``[B, C, ceil(H/s), ceil(W/s)]``."""
        if q.shape[-2:] == k.shape[-2:]:
            maps = self._connect(torch.cat([q, k, v], 1), self.fc)
        else:
            of_q = q.shape[1] // self.head_dim
            small = self._connect(torch.cat([k, v], 1), self.fc[:, of_q:])
            large = F.interpolate(small, size=q.shape[-2:], mode="nearest")
            maps = self._connect(q, self.fc[:, :of_q]) + large
        if self.fc_bias is not None:
            maps = maps + self.fc_bias.to(maps.dtype).repeat(self.head_dim)[:, None, None]
        kernel = self.kernel if self.kernel is None else self.kernel.to(q.dtype)
        out = shift_aggregate(
            maps,
            self.kernel_size,
            groups=self.head_dim,
            stride=self.stride,
            dilation=self.dilation,
            form="tensor" if self.shift == "tensor" else "grouped",
            weight=kernel,
        )
        return out if self.has_kernel_by_output else out.repeat_interleave(self.num_heads, 1)

    def _connect(self, maps: Tensor, fc: Tensor) -> Tensor:
        """The fully connected layer, ``[B, T * d, H, W]`` -> ``[B, d * k², H, W]``."""
        by_map = maps.unflatten(1, (fc.shape[1], self.head_dim))
        # contiguous: a program exported at one batch size would guard on einsum's strides at another
        return torch.einsum("mt,btdhw->bdmhw", fc.to(maps.dtype), by_map).contiguous().flatten(1, 2)

    def folded_weight(self, rate: Tensor | None = None) -> Tensor:
        """fc and the kernels as one grouped convolution, ``[maps, kh, kw, N, head_dim]``: see ``ops.acmix``.

        Args:
            rate: ``[1]``, multiplies it all.
        """
        fc = (self.fc if rate is None else self.fc * rate).t()
        if self.kernel is None:
            return fc.unflatten(1, self.kernel_size)[..., None, None].expand(-1, -1, -1, self.num_heads, self.head_dim)
        kernel = self.kernel.unflatten(0, (self.head_dim, -1)).permute(2, 3, 4, 1, 0)  # [m, y, x, o, g]
        # one product that leaves the weights as the kernels read them; einsum copies once more, and in the backward
        folded = torch.mm(fc, kernel.flatten(1)).unflatten(1, kernel.shape[1:])
        return folded.expand(-1, -1, -1, self.num_heads, -1)

    def folded_bias(self) -> Tensor | None:
        """What the bias of fc adds, as the convolution ``[C, 1, kh, kw]`` of a map of ones: zeros lie beyond it too."""
        if self.fc_bias is None:
            return None
        if self.kernel is None:
            bias = self.fc_bias.unflatten(0, self.kernel_size)
            return bias.expand(self.num_heads * self.head_dim, 1, -1, -1)
        found = torch.einsum("cmyx,m->cyx", self.kernel, self.fc_bias).unsqueeze(1)
        return found if self.has_kernel_by_output else found.repeat_interleave(self.num_heads, 0)

    def shift_multiply_adds(self, inputs: int) -> int:
        """What the shifts and their sum cost for one output pixel, of so many input pixels.

        A sum of shifted maps counts as a multiply-add a tap.
        """
        taps = self.kernel_size[0] * self.kernel_size[1]
        if self.shift == "tensor":
            return taps * self.head_dim * inputs
        return taps * taps * self.head_dim * (self.num_heads if self.has_kernel_by_output else 1)

    def scaled_copy(self, rate: Tensor) -> ShiftConvolution:
        """A copy whose outputs are this one's times ``[1]``."""
        copied = copy.deepcopy(self)
        copied.fc = scaled(self.fc, rate)
        if self.fc_bias is not None:
            copied.fc_bias = scaled(self.fc_bias, rate)
        return copied


class ShiftConv2d(DropIn):
    r"""A convolution as its two stages: k² projections, then shift and sum (ACmix eq. 1-8).

    Equal to ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=dilation * (kernel_size // 2),
    dilation)`` with the same ``weight`` and ``bias``, which have the same shapes, so a state dict of one loads into
    the other. It keeps k² maps where a convolution keeps one: a demonstration, not a replacement.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: k, odd.
        stride: distance between outputs.
        dilation: distance between taps.
        form: how maps are moved, see :func:`convattn.ops.shift_aggregate`.
        bias: add a learned number to every output channel.

    Raises:
        ValueError: an even kernel.

    Example:
        >>> import torch
        >>> conv, ours = torch.nn.Conv2d(3, 5, 3, padding=1), ShiftConv2d(3, 5)
        >>> _ = ours.load_state_dict(conv.state_dict())
        >>> x = torch.randn(1, 3, 6, 6)
        >>> bool(torch.allclose(ours(x), conv(x), atol=1e-5))
        True
    """

    shown = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "form")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        *,
        form: Literal["tensor", "depthwise", "grouped"] = "tensor",
        bias: bool = True,
        **geometry: Unpack[Geometry],
    ) -> None:
        super().__init__(in_channels, out_channels, **geometry)
        made = self._factory(geometry)
        self.kernel_size = check_odd(kernel_size)
        self.form = form
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size, **made))
        self.bias = nn.Parameter(torch.empty(out_channels, **made)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, ceil(H/s), ceil(W/s)]``; ``[C_in, H, W]`` likewise."""
        projection = self.weight.flatten(2).transpose(1, 2).flatten(0, 1)[..., None, None]
        maps = F.conv2d(x, projection)
        out = shift_aggregate(
            maps,
            self.kernel_size,
            groups=self.out_channels,
            stride=self.stride,
            dilation=self.dilation,
            form=self.form,
        )
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]
