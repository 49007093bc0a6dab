"""ACmix: one projection, read by an attention path and a convolution path, and the two mixed."""

from __future__ import annotations

from typing import Literal, Unpack

from torch import Tensor, nn

from convattn.layers._base import Factory, Geometry
from convattn.layers._checks import heads_of, is_hooked
from convattn.layers._drop_in import DropIn, Padding, takes_maps
from convattn.layers.acmix_forms import FORMS, FormChoice, Parts, ReparameterizedACmix, fold, fused_attention
from convattn.layers.folding import Folds, check_folds
from convattn.layers.local_attention import LocalAttention, PositionKind
from convattn.layers.path_mix import MixKind, PathMix
from convattn.layers.shift_convolution import ShiftConvolution, ShiftKind
from convattn.ops.acmix import fused_acmix
from convattn.ops.neighborhood import IntPair


class ACmix(DropIn, Folds):
    r"""Self-attention and convolution over one projection (ACmix, fig. 2c).

    .. math:: F_{out} = \alpha\, F_{att}(q, k, v) + \beta\, F_{conv}(q, k, v), \qquad [q; k; v] = W x + b

    Replaces ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=dilation * (kernel_size // 2),
    dilation=dilation)``: same output size for every H, W >= 1, same dtypes, devices and layouts. The first arguments
    are those of ``nn.Conv2d``, and so are the attributes ``kernel_size``, ``stride``, ``padding``, ``dilation``,
    ``groups`` and ``padding_mode``.

    Four parts: ``projection`` (stage I), ``attention`` and ``convolution`` (stage II), ``mix``.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the convolution's kernel, odd.
        stride: distance between outputs.
        padding: None, ``"same"`` or ``dilation * (kernel_size // 2)``, which keep the size of the map.
        dilation: distance between the taps of the kernel and between the keys of the window.
        groups: 1; every output reads all inputs.
        bias: the projection has a bias. A batch norm that follows makes it superfluous, as it does a convolution's.
        padding_mode: ``"zeros"``, what lies beyond the border of the convolution; the attention's is reflected.
        attention_kernel_size: the attention's window.
        num_heads: N; must divide ``out_channels``. None: 4, or the divisor of ``out_channels`` that is nearest to 4.
        position: the attention's position term: ``"linear"`` (the authors' code), ``"table"`` (a learned vector for
            every offset, as in stand-alone self-attention) or None.
        shift: how the convolution path shifts (table 7), see :class:`ShiftConvolution`.
        mix: how the paths are summed (table 6), see :class:`PathMix`.
        attention: another attention path in place of the local one: a module that takes the q, k and v maps
            ``[B, C, H, W]`` and returns ``[B, C, ceil(H/stride), ceil(W/stride)]``. ``attention_kernel_size`` and
            ``position`` then have no effect. Where it has an attribute ``query_channels``, q and k get so many
            channels: a multiple of C/N.
        convolution_bias: the fully connected layer of the convolution path has a bias (as in Swin-ACmix).

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``, an even ``kernel_size``, another padding, groups or
            padding mode, an unknown option; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> ACmix(64, 128, 3, stride=2, padding=1, bias=False)(torch.randn(1, 64, 15, 15)).shape
        torch.Size([1, 128, 8, 8])
    """

    shown = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "num_heads")
    forms = FORMS
    reparameterized: ReparameterizedACmix | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: Padding = None,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros"] = "zeros",
        *,
        attention_kernel_size: IntPair = 7,
        num_heads: int | None = None,
        position: PositionKind | None = "linear",
        shift: ShiftKind = "learnable",
        mix: MixKind = "free",
        attention: nn.Module | None = None,
        convolution_bias: bool = False,
        **made: Unpack[Factory],
    ) -> None:
        geometry: Geometry = {"stride": stride, "dilation": dilation, **made}
        super().__init__(in_channels, out_channels, **geometry)
        self._set_conv2d_words(kernel_size, padding, groups, padding_mode)
        self.num_heads = num_heads = heads_of(out_channels, num_heads)
        query_channels = _query_channels(attention, out_channels, out_channels // num_heads)
        self.split = (query_channels, query_channels, out_channels)
        self.projection = nn.Conv2d(in_channels, sum(self.split), 1, bias=bias, **made)
        self.attention = attention or LocalAttention(
            out_channels, kernel_size=attention_kernel_size, num_heads=num_heads, position=position, **geometry
        )
        self.convolution = ShiftConvolution(
            out_channels,
            kernel_size=kernel_size,
            num_heads=num_heads,
            maps=sum(self.split) * num_heads // out_channels,
            bias=convolution_bias,
            shift=shift,
            **geometry,
        )
        self.mix = PathMix(mix, **made)
        self.reparameterized = None

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        reparameterized = self.reparameterized
        if reparameterized is not None:
            return reparameterized(x)
        fused = self._fused(x)
        if fused is not None:
            return fused
        q, k, v = self.projection(x).split(self.split, 1)
        return self.mix(self.attention(q, k, v), self.convolution(q, k, v))

    def _fused(self, x: Tensor) -> Tensor | None:
        """The output by one kernel; None where there is none, or a part was replaced or is hooked."""
        projection, path, mix = self.projection, self.convolution, self.mix
        if (type(projection), type(path), type(mix)) != (nn.Conv2d, ShiftConvolution, PathMix):
            return None
        attention = fused_attention(self.attention, path.num_heads, path.stride)
        if attention is None or path.fc_bias is not None or is_hooked(projection, path, mix):
            return None
        return fused_acmix(
            x,
            projection.weight,
            projection.bias,
            attention.position_weight,
            lambda: _training_tables(path, mix),
            nbhd=attention.neighborhood,
            num_heads=path.num_heads,
            kernel_size=path.kernel_size,
            dilation=path.dilation,
        )

    @property
    def bias(self) -> Tensor | None:
        """The projection's bias, ``[3C]``; None for ``bias=False``."""
        projection: nn.Conv2d = (self.reparameterized or self).projection
        return projection.bias

    def reparameterize(self, form: FormChoice = "auto", *, example: Tensor | None = None) -> None:
        """Fold all that is linear, for inference: same outputs, fewer and cheaper steps. In place and for good.

        timm's convention: ``timm.utils.reparameterize_model(model)`` does it to every operator of a network, and a
        second call does nothing. The parameters are replaced by the folded ones, so save the trained weights before.
        :func:`convattn.optimize` also folds the batch norm that follows.

        Args:
            form: ``"grouped"``: the fully connected layer, the kernels and β are one grouped convolution of q, k and
                v; ``"dense"``: the whole convolution path is one convolution of the input; ``"unfused"``: α and β
                alone fold. ``"auto"``: the one of the fewest multiply-adds, or with an ``example`` of the least time.
            example: ``[B, C_in, H, W]``, what the operator will run on.

        Raises:
            ValueError: an unknown form, or another one than an earlier call chose.
            TypeError: a part, or the forward of one, was replaced by something that does not fold.

        Example:
            >>> import torch
            >>> layer, x = ACmix(16, 16), torch.randn(1, 16, 6, 6)
            >>> before = layer(x)
            >>> layer.reparameterize()
            >>> layer.reparameterized.form, bool(torch.allclose(layer(x), before, atol=1e-5))
            ('grouped', True)
        """
        self._take_form(form, lambda: self._folded(form, example), "projection", "attention", "convolution", "mix")

    def _folded(self, form: FormChoice, example: Tensor | None) -> ReparameterizedACmix:
        check_folds(self.mix)
        return fold(Parts(self.projection, self.attention, self.convolution, *self.mix.rates()), form, example)


def _training_tables(path: ShiftConvolution, mix: PathMix) -> tuple[Tensor, Tensor]:
    """The convolution path times β as one grouped convolution, and α."""
    alpha, beta = (rate.to(path.fc) for rate in mix.rates())  # a plain sum's are ones in float32 on the CPU
    return path.folded_weight(beta), alpha


def _query_channels(attention: nn.Module | None, channels: int, head_dim: int) -> int:
    """Channels of q and of k: those that the attention path names, or all."""
    named = int(getattr(attention, "query_channels", channels))
    if named < 1 or named % head_dim:
        raise ValueError(
            f"the attention path's query_channels must be a multiple of the {head_dim} channels of a head, got {named}"
        )
    return named
