"""Attention over a whole map (ACmix eq. 20), and with spatial reduction as in PVT, with and without ACmix."""

from __future__ import annotations

import copy
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._checks import check_channels, check_division, check_folds
from convattn.layers._drop_in import traced_as_one
from convattn.layers.acmix import MixKind, PathMix
from convattn.layers.convolution import ShiftConvolution, ShiftKind
from convattn.layers.reparameterized import PASS_SAVED, _exact, _parameter
from convattn.ops import Neighborhood, group_convolution
from convattn.ops._dispatch import dense_attention, is_exporting
from convattn.ops.neighborhood import IntPair

AttentionOutput: TypeAlias = Literal["heads", "projected"]
ReducedForm: TypeAlias = Literal["grouped", "unfused"]
ReducedFormChoice: TypeAlias = Literal["auto", "grouped", "unfused"]


class GlobalAttention(nn.Module):
    r"""An attention path from q, k and v maps, every pixel looking at all of them (ACmix eq. 20).

    .. math:: F_{att}(i) = \mathrm{softmax}_j\!\left(q_i \cdot k_j / \sqrt{d}\right) v_j

    k and v may be of another size than q (spatial reduction). There is no position term: order and shape of a map
    have no effect, so a sequence of T tokens is a map of T x 1 pixels.

    Args:
        channels: C of v and of the output.
        num_heads: N; must divide both channels.
        stride: distance between queries.
        query_channels: C_qk of q and k; None: ``channels``.
        output: ``"heads"``: the heads as they are; ``"projected"``: a linear layer (``proj``) follows, as in vision
            transformers. In ACmix, α then multiplies what it gives.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: heads that do not divide the channels, an unknown output; in ``forward``, maps that do not fit.

    Example:
        >>> import torch
        >>> from convattn import ACmix
        >>> ACmix(8, 16, stride=2, attention=GlobalAttention(16, stride=2))(torch.randn(1, 8, 7, 9)).shape
        torch.Size([1, 16, 4, 5])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        stride: IntPair = 1,
        query_channels: int | None = None,
        output: AttentionOutput = "heads",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.num_heads = channels, num_heads
        self.query_channels = channels if query_channels is None else query_channels
        check_division(channels, num_heads)
        if self.query_channels < 1 or self.query_channels % num_heads:
            raise ValueError(f"query_channels={query_channels} must be divisible by num_heads, got {num_heads}")
        if output not in get_args(AttentionOutput):
            raise ValueError(f"output must be one of {get_args(AttentionOutput)}, got {output!r}")
        self.queries = Neighborhood.window(1, stride=stride)
        self.proj = nn.Linear(channels, channels, device=device, dtype=dtype) if output == "projected" else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q ``[B, C_qk, H, W]``, k ``[B, C_qk, h, w]``, v ``[B, C, h, w]`` -> ``[B, C, ceil(H/s), ceil(W/s)]``."""
        self._check(q, k, v)
        q = self.queries.centres(q)
        heads = (as_tokens(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = dense_attention(*heads).transpose(1, 2).flatten(2)
        return as_map(out if self.proj is None else self.proj(out), (q.shape[2], q.shape[3]))

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        expected = {"q": self.query_channels, "k": self.query_channels, "v": self.channels}
        for (name, channels), x in zip(expected.items(), (q, k, v), strict=True):
            if x.dim() != 4 or x.shape[1] != channels:
                raise ValueError(f"{name} must be [B, {channels}, H, W], got {list(x.shape)}")
        if k.shape[-2:] != v.shape[-2:]:
            raise ValueError(f"k and v must be of one size, got {list(k.shape)} and {list(v.shape)}")

    def extra_repr(self) -> str:
        """What the constructor got."""
        narrow = "" if self.query_channels == self.channels else f", query_channels={self.query_channels}"
        return f"{self.channels}, num_heads={self.num_heads}, stride={self.queries.stride}{narrow}"


class SpatialReductionProjection(nn.Module):
    """q from every token, k and v from the map reduced by a strided convolution and a layer norm (PVT).

    A map that the ratio does not divide is filled up with zeros at the right and at the bottom.

    Args:
        channels: C.
        sr_ratio: side of the square of pixels that becomes one key; 1: k and v come from the tokens themselves.
        num_prefix_tokens: how many tokens before those of the map, such as a class token; they are not reduced.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: a ratio below 1.

    Example:
        >>> import torch
        >>> q, k, v = SpatialReductionProjection(8, sr_ratio=2)(torch.randn(1, 15, 8), (3, 5))
        >>> q.shape, k.shape
        (torch.Size([1, 15, 8]), torch.Size([1, 6, 8]))
    """

    def __init__(
        self,
        channels: int,
        *,
        sr_ratio: int = 1,
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(channels)
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio must be at least 1, got {sr_ratio}")
        self.sr_ratio, self.num_prefix_tokens = sr_ratio, num_prefix_tokens
        self.q = nn.Linear(channels, channels, device=device, dtype=dtype)
        self.kv = nn.Linear(channels, 2 * channels, device=device, dtype=dtype)
        self.sr: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(channels, channels, sr_ratio, sr_ratio, device=device, dtype=dtype)
            self.norm = nn.LayerNorm(channels, device=device, dtype=dtype)

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, p + H W, C]`` -> q ``[B, p + H W, C]``, k and v ``[B, p + ceil(H/r) ceil(W/r), C]``."""
        source = x
        if self.sr is not None and self.norm is not None:
            prefix, pixels = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
            reduced = self.norm(as_tokens(self.sr(pad_to_multiple(as_map(pixels, size), self.sr_ratio))))
            source = torch.cat([prefix, reduced], 1) if self.num_prefix_tokens else reduced
        k, v = self.kv(source).chunk(2, -1)
        return self.q(x), k, v

    def extra_repr(self) -> str:
        """What the constructor got."""
        return f"sr_ratio={self.sr_ratio}, num_prefix_tokens={self.num_prefix_tokens}"


class SpatialReductionAttention(nn.Module):
    """Global attention with few keys, the attention of PVT: ``projection``, then ``attention``.

    Source: Wang et al., *Pyramid Vision Transformer*, ICCV 2021, section 3.3.

    Args:
        channels: C.
        num_heads: N; must divide ``channels``.
        sr_ratio: see :class:`SpatialReductionProjection`.
        num_prefix_tokens: see :class:`SpatialReductionProjection`.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``, a ratio below 1.

    Example:
        >>> import torch
        >>> SpatialReductionAttention(8, num_heads=2, sr_ratio=4)(torch.randn(2, 48, 8), (8, 6)).shape
        torch.Size([2, 48, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        sr_ratio: int = 1,
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.projection = SpatialReductionProjection(
            channels, sr_ratio=sr_ratio, num_prefix_tokens=num_prefix_tokens, device=device, dtype=dtype
        )
        self.attention: nn.Module = GlobalAttention(
            channels, num_heads=num_heads, output="projected", device=device, dtype=dtype
        )

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, p + H W, C]`` and ``(H, W)`` -> ``[B, p + H W, C]``."""
        return self._attend(*self.projection(x, size))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return as_tokens(self.attention(*(as_map(tokens, (tokens.shape[1], 1)) for tokens in (q, k, v))))


class SpatialReductionACmix(SpatialReductionAttention):
    r"""ACmix over the projection of PVT's attention: PVT-ACmix's operator.

    The attention path looks at the reduced k and v. The convolution path (:class:`ShiftConvolution`) works at full
    resolution, on q and on k and v enlarged, every pixel taking those of its square; its fully connected layer, which
    commutes with that, runs before. Prefix tokens get nothing from it. α multiplies the attention after ``proj``.

    .. math:: F_{out} = \alpha\, \mathrm{proj}(F_{att}(q, k, v)) + \beta\, F_{conv}(q, \mathrm{up}(k), \mathrm{up}(v))

    The authors name PVT-ACmix and its cost, and released no code of it; this reading meets every published number.

    Args:
        channels: C.
        num_heads: N; must divide ``channels``.
        sr_ratio: see :class:`SpatialReductionProjection`. A map that it does not divide is filled up with zeros at
            the right and at the bottom, for the convolution path too.
        num_prefix_tokens: see :class:`SpatialReductionProjection`.
        kernel_size: the convolution's kernel, odd.
        shift: how the convolution path shifts (table 7), see :class:`ShiftConvolution`.
        mix: how the paths are summed (table 6), see :class:`PathMix`.
        device: where the parameters are made.
        dtype: what the parameters are made of.

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``, a ratio below 1, an even kernel, an unknown option.

    Example:
        >>> import torch
        >>> SpatialReductionACmix(8, num_heads=2, sr_ratio=4)(torch.randn(2, 48, 8), (8, 6)).shape
        torch.Size([2, 48, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        sr_ratio: int = 1,
        num_prefix_tokens: int = 0,
        kernel_size: IntPair = 3,
        shift: ShiftKind = "learnable",
        mix: MixKind = "free",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_heads=num_heads,
            sr_ratio=sr_ratio,
            num_prefix_tokens=num_prefix_tokens,
            device=device,
            dtype=dtype,
        )
        self.convolution: nn.Module = ShiftConvolution(
            channels, kernel_size=kernel_size, num_heads=num_heads, shift=shift, device=device, dtype=dtype
        )
        self.mix = PathMix(mix, device=device, dtype=dtype)
        self.reparameterized: ReducedForm | None = None

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, p + H W, C]`` and ``(H, W)`` -> ``[B, p + H W, C]``."""
        q, k, v = self.projection(x, size)
        convolution = F.pad(self._convolve(q, k, v, size), (0, 0, self.projection.num_prefix_tokens, 0))
        return self.mix(self._attend(q, k, v), convolution)

    def _convolve(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        ratio, prefix = self.projection.sr_ratio, self.projection.num_prefix_tokens
        cells = ((size[0] + ratio - 1) // ratio, (size[1] + ratio - 1) // ratio)
        maps = [pad_to_multiple(as_map(q[:, prefix:], size), ratio)]
        maps += [as_map(tokens[:, prefix:], cells) for tokens in (k, v)]
        if is_exporting():  # regrouping the channels of a channels_last map would tie an exported size
            maps = [x.contiguous() for x in maps]
        out = self.convolution(*maps)
        return as_tokens(_crop(out, size))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: α and β (timm's convention)."""
        return {f"mix.{name}" for name, _ in self.mix.named_parameters()}

    @torch.no_grad()
    def reparameterize(self, form: ReducedFormChoice = "auto") -> None:
        """Fold all that is linear, for inference: same outputs, fewer and cheaper steps. In place and for good.

        timm's convention: ``timm.utils.reparameterize_model(model)`` does it to every operator of a network, and a
        second call does nothing. α goes into ``proj``, β into the convolution path.

        Args:
            form: ``"grouped"``: the fully connected layer and the kernels become grouped convolutions of q and of the
                enlarged k and v (:class:`ReducedConvolution`); ``"unfused"``: α and β alone fold. ``"auto"``: the
                fewest multiply-adds (:func:`multiply_adds`), ``"grouped"`` being given some more for reading its
                inputs in one pass.

        Raises:
            ValueError: an unknown form, or another one than an earlier call chose.
            TypeError: the convolution path was replaced by something that does not fold.

        Example:
            >>> import torch
            >>> layer, x = SpatialReductionACmix(8, num_heads=2, sr_ratio=4), torch.randn(2, 48, 8)
            >>> before = layer(x, (8, 6))
            >>> layer.reparameterize()
            >>> layer.reparameterized, bool(torch.allclose(layer(x, (8, 6)), before, atol=1e-5))
            ('grouped', True)
        """
        if form not in get_args(ReducedFormChoice):
            raise ValueError(f"form must be one of {get_args(ReducedFormChoice)}, got {form!r}")
        if self.reparameterized is not None:
            if form not in ("auto", self.reparameterized):
                raise ValueError(
                    f"the operator is reparameterized as {self.reparameterized!r} and its trained parameters are "
                    f"gone: to have it {form!r}, build and load it anew"
                )
            return
        path, ratio = self.convolution, self.projection.sr_ratio
        if type(path) is not ShiftConvolution or path.fc_bias is not None:
            raise TypeError(
                f"reparameterize folds a convolution path that is a ShiftConvolution without bias, got {path}"
            )
        check_folds(path, self.mix)
        if form == "auto":
            counted = multiply_adds(path, ratio)
            form = "grouped" if counted["grouped"] <= PASS_SAVED * counted["unfused"] else "unfused"
        alpha, beta = self.mix.rates()
        path.fc = _times(path.fc, beta)
        self.convolution = ReducedConvolution(path) if form == "grouped" else path
        self.mix = self._mix_after(alpha)
        self.reparameterized = form

    def _mix_after(self, alpha: Tensor) -> PathMix:
        """What stays of the mix when β is gone: nothing where α can go into ``proj``."""
        proj = self.attention.proj if type(self.attention) is GlobalAttention else None
        if proj is None:
            mix = PathMix("alpha", device=self.projection.q.weight.device, dtype=self.projection.q.weight.dtype)
            mix.alpha = _times(nn.Parameter(torch.ones_like(alpha)), alpha)
            return mix
        proj.weight, proj.bias = _times(proj.weight, alpha), _times(proj.bias, alpha)
        return PathMix("sum")


class ReducedConvolution(nn.Module):
    """The convolution path of :class:`SpatialReductionACmix` for inference, from q, k and v maps.

    The fully connected layer and the k x k kernels are one grouped convolution of q's N maps and one of k's and v's
    2N, enlarged (:func:`convattn.ops.group_convolution`).

    Args:
        path: the convolution path, β in it.

    Example:
        >>> import torch
        >>> path = ShiftConvolution(8, num_heads=2)
        >>> q, k, v = torch.randn(1, 8, 6, 4), torch.randn(1, 8, 3, 2), torch.randn(1, 8, 3, 2)
        >>> bool(torch.allclose(ReducedConvolution(path)(q, k, v), path(q, k, v), atol=1e-6))
        True
    """

    def __init__(self, path: ShiftConvolution) -> None:
        super().__init__()
        exact_path = copy.deepcopy(path).to(_exact(path.fc).device, torch.float64)
        folded, self.kernel_size = exact_path.folded_weight(), path.kernel_size
        # three dimensions: a module's conversion to channels_last refuses parameters of five
        of_q, of_kv = (part.flatten(0, 2) for part in folded.split((path.num_heads, 2 * path.num_heads)))
        self.weight_q, self.weight_kv = _parameter(of_q, path.fc), _parameter(of_kv, path.fc)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q ``[B, C, r h, r w]``, k and v ``[B, C, h, w]`` -> ``[B, C, r h, r w]``."""
        small = torch.cat([k, v], 1).contiguous(memory_format=torch.channels_last)
        large = F.interpolate(small, size=q.shape[-2:], mode="nearest")
        weight_q, weight_kv = (
            weight.unflatten(0, (-1, *self.kernel_size)).to(q.dtype) for weight in (self.weight_q, self.weight_kv)
        )
        return group_convolution(q, weight_q) + group_convolution(large, weight_kv)

    def extra_repr(self) -> str:
        """What it holds."""
        return f"weight_q={list(self.weight_q.shape)}, weight_kv={list(self.weight_kv.shape)}"


def multiply_adds(path: ShiftConvolution, sr_ratio: int) -> dict[ReducedForm, int]:
    """What either form costs for one square of ``sr_ratio`` x ``sr_ratio`` pixels: projections, convolution path.

    Example:
        >>> multiply_adds(ShiftConvolution(64, num_heads=1), 8)
        {'grouped': 380928, 'unfused': 640128}
    """
    (kh, kw), pixels, heads = path.kernel_size, sr_ratio * sr_ratio, path.num_heads
    channels, taps = heads * path.head_dim, kh * kw
    connected = taps * path.head_dim * heads * (pixels + 2)
    # a sum of shifted maps counts as a multiply-add a tap
    shifted = {"tensor": taps * path.head_dim, "fixed": taps * taps * path.head_dim}
    projected = channels * channels * (pixels + 2)
    return {
        "grouped": projected + 3 * heads * channels * taps * pixels,
        "unfused": projected + connected + shifted.get(path.shift, taps * taps * channels) * pixels,
    }


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B, H W, C]`` -> ``[B, C, H, W]``, without a copy: the map is channels_last.

    Example:
        >>> as_map(torch.zeros(2, 12, 5), (3, 4)).shape
        torch.Size([2, 5, 3, 4])
    """
    return tokens.transpose(1, 2).unflatten(2, size)


def as_tokens(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H W, C]``, contiguous; without a copy where the map is channels_last.

    Example:
        >>> as_tokens(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 12, 5])
    """
    return x.flatten(2).transpose(1, 2).contiguous()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and at the bottom of ``[B, C, H, W]``, up to the next multiples.

    Example:
        >>> pad_to_multiple(torch.zeros(1, 1, 5, 8), 4).shape
        torch.Size([1, 1, 8, 8])
    """
    bottom, right = ((size + multiple - 1) // multiple * multiple - size for size in x.shape[-2:])
    # a comparison would tie an exported size to multiples or to all others
    if multiple == 1 or not (is_exporting() or bottom or right):
        return x
    return F.pad(x, (0, right, 0, bottom))


def _crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns of ``[B, C, H, W]``; by index where a slice would tie an exported size."""
    if is_exporting():
        rows, columns = (torch.arange(n, device=x.device) for n in size)
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, : size[0], : size[1]]


def _times(value: Tensor, rate: Tensor) -> nn.Parameter:
    """A parameter times a rate, multiplied in float64."""
    exact = _exact(value)
    return _parameter(exact * _exact(rate).to(exact.device), value)
