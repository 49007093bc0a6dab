"""X-volution: convolutions and self-attention side by side, one dynamic convolution once trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn

from convattn.layers._base import Factory, Geometry
from convattn.layers._checks import check_input, is_hooked
from convattn.layers._drop_in import DropIn, Padding, takes_maps
from convattn.layers.dynamic_kernel import DynamicKernel, dynamic_kernel
from convattn.layers.global_attention import GlobalAttention2d
from convattn.layers.involution import Involution2d
from convattn.layers.multi_convolution import DILATED_KERNEL, MultiConvolution
from convattn.layers.pssa import LENGTHS, PSSA, HeadCount, Propagation, Reading, ShiftPosition, head_count
from convattn.layers.static_convolution import StaticBranch, StaticFormChoice, fold_static, line
from convattn.layers.xvolution_forms import ReparameterizedXVolution, fold_gain, fold_inside
from convattn.ops._dispatch import runs_directly
from convattn.ops._layout import memory_format_of
from convattn.ops.neighborhood import IntPair, as_pair

AttentionKind: TypeAlias = Literal["pssa", "global", "involution"]


class PSSAOptions(TypedDict):
    """What PSSA alone is told."""

    reading: Reading
    position: ShiftPosition | None
    propagation: Propagation
    lengths: Sequence[int]


STANDARD = PSSAOptions(reading="value", position=None, propagation="stacked", lengths=LENGTHS)
"""What it is told where nothing is said."""


class XVolution(MultiConvolution):
    r"""Convolution and self-attention in one operator (X-volution, fig. 1).

    .. math:: y = \mathrm{BN}(W_k * x) + \mathrm{BN}(W_5 * x) + \mathrm{BN}(\mathrm{Attention}(x))

    Replaces ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=dilation * (kernel_size // 2),
    dilation=dilation)``: same output size for every H, W >= 1, same dtypes, devices and layouts. A batch norm
    usually followed it: leave that where it is. The first arguments are those of ``nn.Conv2d``, and so are the
    attributes ``kernel_size``, ``stride``, ``padding``, ``dilation``, ``groups`` and ``padding_mode``.

    Three branches: ``convolution``, ``dilated`` (5 by 5, taps twice as far apart; see :class:`MultiConvolution`) and
    ``attention``, each with its batch norm: ``convolution_norm``, ``dilated_norm``, ``attention_norm``. Figure 1 and
    eq. 8 have one convolution: ``dilated_kernel_size=None``.

    Source: Chen et al., *X-volution: On the Unification of Convolution and Self-attention*, 2021. The authors
    released no code.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: of ``convolution``, odd; figure 3a goes from 1 to 9.
        stride: distance between outputs.
        padding: None, ``"same"`` or ``dilation * (kernel_size // 2)``, which keep the size of the map.
        dilation: distance between the taps of ``convolution``; it multiplies those of ``dilated`` and the offsets of
            the attention too.
        groups: 1; :meth:`around` keeps the groups, padding and border of a convolution.
        bias: True: the batch norms' shifts are the bias.
        padding_mode: ``"zeros"``.
        attention: ``"pssa"``: :class:`PSSA`; ``"global"``: :class:`GlobalAttention2d`, the paper's X-volution(SA);
            ``"involution"``: :class:`Involution2d`, the paper's X-volution(Inv); or a module from
            ``[B, C_in, H, W]`` to ``[B, C, ceil(H/stride), ceil(W/stride)]``; or what makes one, called with
            ``(in_channels, out_channels, stride=, dilation=, device=, dtype=)``.
        num_heads: of ``"pssa"`` and ``"global"``; None: 1 and, of ``"global"``, 4 or the divisor nearest to 4.
        reading: of ``"pssa"``.
        position: of ``"pssa"``; None, as the paper's standard operator.
        propagation: of ``"pssa"``; ``"summed"`` has eq. 7's outer sum.
        lengths: of ``"pssa"``; with 0 among them the region contains the pixel itself.
        dilated_kernel_size: of ``dilated``; None: figure 1's and eq. 8's single convolution.

    Raises:
        ValueError: an even ``kernel_size``, another padding, groups, bias or padding mode, ``num_heads`` that does
            not divide ``out_channels``, an unknown option, or one of ``"pssa"`` for another attention; in
            ``forward``, an input of another shape.
        TypeError: an ``attention`` that is neither a kind, a module nor a function.

    Example:
        >>> import torch
        >>> XVolution(64, 128, stride=2)(torch.randn(2, 64, 15, 15)).shape
        torch.Size([2, 128, 8, 8])
    """

    _parts = (*MultiConvolution._parts, "attention", "attention_norm")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: Padding = None,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: Literal[True] = True,
        padding_mode: Literal["zeros"] = "zeros",
        *,
        attention: AttentionKind | nn.Module | Callable[..., nn.Module] = "pssa",
        num_heads: HeadCount | None = None,
        reading: Reading = "value",
        position: ShiftPosition | None = None,
        propagation: Propagation = "stacked",
        lengths: Sequence[int] = LENGTHS,
        dilated_kernel_size: IntPair | None = DILATED_KERNEL,
        **made: Unpack[Factory],
    ) -> None:
        words = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, *words, dilated_kernel_size=dilated_kernel_size, **made)
        geometry: Geometry = {"stride": self.stride, "dilation": self.dilation, **made}
        options = PSSAOptions(reading=reading, position=position, propagation=propagation, lengths=lengths)
        self.attention = _make_attention(attention, (in_channels, out_channels), num_heads, options, geometry)
        self.attention_norm: nn.Module = nn.BatchNorm2d(out_channels, **made)
        self.origin: tuple[int, int] | None = None

    @classmethod
    def around(
        cls,
        conv: nn.Conv2d,
        *,
        attention: AttentionKind | nn.Module | Callable[..., nn.Module] = "pssa",
        num_heads: HeadCount | None = None,
        reading: Reading = "value",
        position: ShiftPosition | None = None,
        propagation: Propagation = "stacked",
        lengths: Sequence[int] = LENGTHS,
    ) -> XVolution:
        """A trained convolution and an attention branch that adds exactly nothing at first.

        The convolution, the very module, is the one static branch, without a batch norm of its own; the attention's
        batch norm starts with a gain of 0. So a converted network computes what it did, and learns from there. Any
        configuration works: kernels, groups, strides, dilations, paddings and padding modes, with or without bias.
        The attention looks from the centres of the convolution's windows; where these do not run through the map from
        its first pixel on, zeros lie around the map of the centres too.

        Args:
            conv: of any configuration; a subclass keeps its own way.
            attention: as in the constructor.
            num_heads: as in the constructor.
            reading: as in the constructor.
            position: as in the constructor.
            propagation: as in the constructor.
            lengths: as in the constructor.

        Raises:
            TypeError: no ``nn.Conv2d``.
            ValueError: as in the constructor.

        Example:
            >>> import torch
            >>> conv, x = nn.Conv2d(8, 16, 2, stride=2, groups=4), torch.randn(1, 8, 9, 7)
            >>> bool(torch.equal(XVolution.around(conv)(x), conv(x)))
            True
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"XVolution.around takes an nn.Conv2d, got {type(conv).__name__}")
        like: Factory = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        stride, dilation = as_pair(conv.stride, "stride"), as_pair(conv.dilation, "dilation")
        geometry: Geometry = {"stride": stride, "dilation": dilation, **like}
        layer, channels = cls.__new__(cls), (conv.in_channels, conv.out_channels)
        DropIn.__init__(layer, *channels, **geometry)
        for name in ("kernel_size", "padding", "groups", "padding_mode"):
            setattr(layer, name, getattr(conv, name))
        layer.convolution, layer.convolution_norm = conv, nn.Identity()
        layer.dilated = layer.dilated_norm = layer.reparameterized = None
        options = PSSAOptions(reading=reading, position=position, propagation=propagation, lengths=lengths)
        layer.attention = _make_attention(attention, channels, num_heads, options, geometry)
        layer.attention_norm = nn.BatchNorm2d(conv.out_channels, **like)
        nn.init.zeros_(layer.attention_norm.weight)
        layer.origin = _origin(conv)
        return layer.train(conv.training)

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        static, folded = self._convolve(x), self.reparameterized
        if folded is None:
            if self._is_silent():
                return static
            attention: Tensor = self.attention_norm(self.attention(self._centres(x, static)))
            return static + attention.to(static.dtype)  # float32 comes to the norm under autocast to float16
        if folded.attention is None:
            return static
        return folded.combine(static, folded.attention(self._centres(x, static)))

    def _is_silent(self) -> bool:
        """Whether the attention adds zeros, as after :func:`convattn.convert`: 0 times an overflow would be NaN.

        Asked in eval mode without gradients, and not of a GPU, whose answer would have to be waited for.
        """
        norm = self.attention_norm
        if self.training or type(norm) is not nn.BatchNorm2d or is_hooked(norm, self.attention):
            return False
        if not runs_directly(norm.weight, norm.bias) or not norm.weight.is_cpu:
            return False
        return not norm.weight.any() and not norm.bias.any()

    def _centres(self, x: Tensor, static: Tensor) -> Tensor:
        """The map whose first pixel is the centre of the convolution's first window, zeros where it has none."""
        if self.origin is None:
            return x
        for dim, start, stride in zip((2, 3), self.origin, self.stride, strict=True):
            places = torch.arange(static.shape[dim] * stride, device=x.device) + start
            outside = (places < 0) | (places >= x.shape[dim])
            taken = x.index_select(dim, places.clamp(0, x.shape[dim] - 1))
            x = taken.masked_fill(outside[:, None] if dim == 2 else outside, 0)
        return x.contiguous(memory_format=memory_format_of(static))

    def as_dynamic_kernel(self, x: Tensor) -> DynamicKernel:
        r"""The operator in eval mode as the one convolution of eq. 9, its kernel written out for every pixel.

        .. math:: y(p) = \sum_\delta \bigl(W^A_\delta(p) + W_\delta\bigr)\, x(p + \delta) + b

        The static kernels lie on 33 of the 81 taps of a 9 by 9 window, with PSSA's offsets on 49 of the 121 of an 11
        by 11 one. It is the proof that the branches are one convolution, and large: ``C C_in`` numbers for each pixel
        and tap. :meth:`reparameterize` gives the forms to run.

        Args:
            x: ``[B, C_in, H, W]``.

        Returns:
            the kernel, its offsets and the bias. PSSA in the ``"product"`` reading has no v, so it is no kernel on
            x: it is part of the bias, which then differs from pixel to pixel.

        Raises:
            TypeError: attention of another kind than PSSA and involution, whose reach is no fixed window, or a
                convolution that is not centred on its output's pixel with zeros beyond the border.
            ValueError: the operator is reparameterized or in training mode; an input of another shape.

        Example:
            >>> import torch
            >>> kernel = XVolution(2, 3).eval().as_dynamic_kernel(torch.randn(1, 2, 4, 5))
            >>> kernel.weight.shape, kernel.window().shape
            (torch.Size([1, 3, 2, 49, 4, 5]), torch.Size([1, 3, 2, 11, 11, 4, 5]))
        """
        check_input(x, self.in_channels)
        if self.reparameterized is not None:
            raise ValueError("as_dynamic_kernel needs the branches: call it before reparameterize")
        if self.training:
            raise ValueError("batch norms that train are no fixed lines: call eval() before as_dynamic_kernel")
        branches = self.static_branches()
        gain, shift = line(self.attention_norm, branches[0].convolution.weight)
        return dynamic_kernel(x, branches, self.attention, gain, shift)

    def _folded(
        self, form: StaticFormChoice, example: Tensor | None, size: tuple[int, int] | None
    ) -> ReparameterizedXVolution:
        branches = self.static_branches()
        like = branches[0].convolution.weight
        gain, shift = line(self.attention_norm, like)
        branches[0] = StaticBranch(branches[0].convolution, branches[0].gain, branches[0].shift + shift)
        static = fold_static(branches, form, example, size)
        if like.device.type != "meta" and not gain.any():
            return ReparameterizedXVolution(static, None, None)
        fold_inside(self.attention)
        return ReparameterizedXVolution(static, self.attention, fold_gain(self.attention, gain, like))


def _make_attention(
    attention: AttentionKind | nn.Module | Callable[..., nn.Module],
    channels: tuple[int, int],
    num_heads: HeadCount | None,
    options: PSSAOptions,
    geometry: Geometry,
) -> nn.Module:
    of_pssa = {name: value for name, value in options.items() if value != STANDARD[name]}  # type: ignore[literal-required]
    if attention != "pssa" and of_pssa:
        settings = ", ".join(f"{name}={value!r}" for name, value in of_pssa.items())
        raise ValueError(f"attention='pssa' alone is told {settings}; leave it out, or set it in the attention")
    if attention not in ("pssa", "global") and num_heads is not None:
        raise ValueError(f"num_heads is of attention='pssa' and 'global', got {num_heads!r} for another; leave it out")
    if isinstance(attention, nn.Module):
        return attention
    if attention == "pssa":
        return PSSA(*channels, num_heads=1 if num_heads is None else num_heads, **options, **geometry)
    if attention == "global":
        given = None if num_heads is None else head_count(num_heads, channels[1])
        return GlobalAttention2d(*channels, num_heads=given, **geometry)
    if attention == "involution":
        return Involution2d(*channels, **geometry)
    if isinstance(attention, str):
        raise ValueError(f"attention must be one of {get_args(AttentionKind)} or a module, got {attention!r}")
    if not callable(attention):
        raise TypeError(
            f"attention must be one of {get_args(AttentionKind)}, a module or what makes one, got {attention!r}"
        )
    return attention(*channels, **({"device": None, "dtype": None} | geometry))


def _origin(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The centre of a convolution's first window; None where centres are every ``stride``-th pixel of the map."""
    spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if conv.padding == "same":
        return None
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    if all(span == 2 * pad for span, pad in zip(spans, padding, strict=True)):
        return None
    return spans[0] // 2 - padding[0], spans[1] // 2 - padding[1]
