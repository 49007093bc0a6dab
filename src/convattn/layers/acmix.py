"""ACmix: one projection, read by an attention path and a convolution path, and the two mixed."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from convattn.layers._checks import check_channels, check_division, check_folds, is_hooked
from convattn.layers._drop_in import takes_maps
from convattn.layers.attention import LinearPosition, LocalAttention, PositionKind
from convattn.layers.convolution import ShiftConvolution, ShiftKind
from convattn.layers.reparameterized import FormChoice, Parts, ReparameterizedACmix, fold
from convattn.ops.acmix import acmix, has_kernel
from convattn.ops.neighborhood import IntPair

MixKind: TypeAlias = Literal["free", "alpha", "convex", "sum"]
MIXES: tuple[MixKind, ...] = ("free", "alpha", "convex", "sum")


class PathMix(nn.Module):
    r"""The weighted sum of the two paths, :math:`\alpha F_{att} + \beta F_{conv}` (ACmix eq. 13, table 6).

    Args:
        kind: ``"free"``: α and β are learned and start at 0.5, as in the authors' code; ``"alpha"``: α is learned
            and starts at 1, β is 1; ``"convex"``: α is learned and starts at 0.5, β is 1 - α; ``"sum"``: both are 1.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> import torch
        >>> PathMix("convex")(torch.ones(1), torch.zeros(1))
        tensor([0.5000], grad_fn=<AddBackward0>)
    """

    def __init__(
        self, kind: MixKind = "free", *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if kind not in MIXES:
            raise ValueError(f"mix must be one of {', '.join(map(repr, MIXES))}, got {kind!r}")
        self.kind = kind
        self.alpha: nn.Parameter | None = None
        self.beta: nn.Parameter | None = None
        if kind != "sum":
            self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        if kind == "free":
            self.beta = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set α and β to where they start."""
        for rate in (self.alpha, self.beta):
            if rate is not None:
                nn.init.constant_(rate, 1.0 if self.kind == "alpha" else 0.5)

    def rates(self) -> tuple[Tensor, Tensor]:
        """α and β as they enter the sum, one element each."""
        if self.alpha is None:
            return torch.ones(1), torch.ones(1)
        if self.beta is not None:
            return self.alpha, self.beta
        return self.alpha, 1 - self.alpha if self.kind == "convex" else torch.ones_like(self.alpha)

    def forward(self, attention: Tensor, convolution: Tensor) -> Tensor:
        """Two maps of one shape -> their mix, in their dtype."""
        if self.alpha is None:
            return attention + convolution
        attention = attention * self.alpha.to(attention.dtype)
        if self.kind == "alpha":
            return attention + convolution
        return attention + self.rates()[1].to(convolution.dtype) * convolution

    def extra_repr(self) -> str:
        """What the constructor got."""
        return repr(self.kind)


class ACmix(nn.Module):
    r"""Self-attention and convolution over one projection (ACmix, fig. 2c).

    .. math:: F_{out} = \alpha\, F_{att}(q, k, v) + \beta\, F_{conv}(q, k, v), \qquad [q; k; v] = W x + b

    Stands where ``Conv2d(in_channels, out_channels, kernel_size, stride, padding=dilation * (kernel_size // 2),
    dilation=dilation)`` stood: same output size for every H, W >= 1, same dtypes, devices and layouts.

    Four parts: ``projection`` (stage I), ``attention`` and ``convolution`` (stage II), ``mix``.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the convolution's kernel, odd.
        attention_kernel_size: the attention's window.
        num_heads: N; must divide ``out_channels``.
        stride: distance between outputs.
        dilation: distance between the taps of the kernel and between the keys of the window.
        position: the attention's position term: ``"linear"`` (the authors' code), ``"table"`` (a learned vector for
            every offset, as in stand-alone self-attention) or None.
        shift: how the convolution path shifts (table 7), see :class:`ShiftConvolution`.
        mix: how the paths are summed (table 6), see :class:`PathMix`.
        attention: another attention path in place of the local one: a module that takes the q, k and v maps
            ``[B, C, H, W]`` and returns ``[B, C, ceil(H/stride), ceil(W/stride)]``. ``attention_kernel_size`` and
            ``position`` then have no effect. Where it has an attribute ``query_channels``, q and k get so many
            channels: a multiple of C/N.
        convolution_bias: the fully connected layer of the convolution path has a bias (as in Swin-ACmix).
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``, an even ``kernel_size``, an unknown option; in
            ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> ACmix(64, 128, stride=2)(torch.randn(1, 64, 15, 15)).shape
        torch.Size([1, 128, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 3,
        attention_kernel_size: IntPair = 7,
        num_heads: int = 4,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        position: PositionKind | None = "linear",
        shift: ShiftKind = "learnable",
        mix: MixKind = "free",
        attention: nn.Module | None = None,
        convolution_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(in_channels)
        check_division(out_channels, num_heads)
        query_channels = int(getattr(attention, "query_channels", out_channels))
        if query_channels < 1 or query_channels % (out_channels // num_heads):
            raise ValueError(
                f"the attention path's query_channels must be a multiple of the {out_channels // num_heads} channels "
                f"of a head, got {query_channels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.split = (query_channels, query_channels, out_channels)
        self.projection = nn.Conv2d(in_channels, sum(self.split), 1, device=device, dtype=dtype)
        self.attention = attention or LocalAttention(
            out_channels,
            kernel_size=attention_kernel_size,
            num_heads=num_heads,
            stride=stride,
            dilation=dilation,
            position=position,
            device=device,
            dtype=dtype,
        )
        self.convolution = ShiftConvolution(
            out_channels,
            kernel_size=kernel_size,
            num_heads=num_heads,
            stride=stride,
            dilation=dilation,
            maps=sum(self.split) * num_heads // out_channels,
            bias=convolution_bias,
            shift=shift,
            device=device,
            dtype=dtype,
        )
        self.mix = PathMix(mix, device=device, dtype=dtype)
        self.reparameterized: ReparameterizedACmix | None = None

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        if self.reparameterized is not None:
            return self.reparameterized(x)
        attention = self._attention_of_the_kernel(x)
        if attention is not None:
            return self._as_one(x, attention)
        q, k, v = self.projection(x).split(self.split, 1)
        return self.mix(self.attention(q, k, v), self.convolution(q, k, v))

    def _attention_of_the_kernel(self, x: Tensor) -> LocalAttention | None:
        """The attention path, if one kernel computes all four parts here and none was replaced or hooked."""
        attention, convolution = self.attention, self.convolution
        parts = {self.projection: nn.Conv2d, convolution: ShiftConvolution, self.mix: PathMix}
        if type(attention) is not LocalAttention or any(map(is_hooked, self.children())):
            return None
        if any(type(part) is not kind for part, kind in parts.items()):
            return None
        nbhd, kernel_size, dilation = attention.neighborhood, convolution.kernel_size, convolution.dilation
        same = (nbhd.stride, attention.num_heads) == (convolution.stride, convolution.num_heads)
        fused_position = type(attention.position) in (LinearPosition, type(None))
        if not same or not fused_position or convolution.fc_bias is not None:
            return None
        return attention if has_kernel(x, nbhd, convolution.head_dim, kernel_size, dilation) else None

    def _as_one(self, x: Tensor, attention: LocalAttention) -> Tensor:
        alpha, beta = self.mix.rates()
        position = attention.position
        return acmix(
            x,
            self.projection.weight,
            self.projection.bias,
            position.weight if isinstance(position, LinearPosition) else None,
            beta * self.convolution.folded_weight(),
            alpha,
            nbhd=attention.neighborhood,
            num_heads=attention.num_heads,
            dilation=self.convolution.dilation,
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: α and β (timm's convention)."""
        if self.reparameterized is not None:
            return set()
        return {f"mix.{name}" for name, _ in self.mix.named_parameters()}

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
        if self.reparameterized is None:
            check_folds(self.mix)
            parts = Parts(self.projection, self.attention, self.convolution, *self.mix.rates())
            self.reparameterized = fold(parts, form, example)
            del self.projection, self.attention, self.convolution, self.mix
        elif form not in ("auto", self.reparameterized.form):
            raise ValueError(
                f"the operator is reparameterized as {self.reparameterized.form!r} and its trained parameters are "
                f"gone: to have it {form!r}, build and load it anew"
            )


class LocalAttention2d(nn.Module):
    """Stand-alone local self-attention: the attention path of :class:`ACmix` alone, with its projection.

    Source: Ramachandran et al., *Stand-Alone Self-Attention in Vision Models*, NeurIPS 2019 (SASA in ACmix's
    comparisons).

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: the window.
        num_heads: N; must divide ``out_channels``.
        stride: distance between queries.
        dilation: distance between the keys of a window.
        position: ``"table"`` (as in the source), ``"linear"`` (as in ACmix) or None.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: ``num_heads`` does not divide ``out_channels``; in ``forward``, an input of another shape.

    Example:
        >>> import torch
        >>> LocalAttention2d(16, 32, num_heads=8)(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 32, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntPair = 7,
        num_heads: int = 4,
        stride: IntPair = 1,
        dilation: IntPair = 1,
        position: PositionKind | None = "table",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(in_channels)
        check_division(out_channels, num_heads)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.projection = nn.Conv2d(in_channels, 3 * out_channels, 1, device=device, dtype=dtype)
        self.attention = LocalAttention(
            out_channels,
            kernel_size=kernel_size,
            num_heads=num_heads,
            stride=stride,
            dilation=dilation,
            position=position,
            device=device,
            dtype=dtype,
        )

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``; ``[C_in, H, W]`` likewise."""
        return self.attention(*self.projection(x).chunk(3, 1))
