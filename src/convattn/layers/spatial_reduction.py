"""Attention with spatial reduction as in PVT, with and without ACmix."""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._base import Factory, Layer
from convattn.layers._checks import check_counts
from convattn.layers._drop_in import traced_as_one
from convattn.layers.folding import Folds
from convattn.layers.global_attention import GlobalAttention
from convattn.layers.path_mix import MixKind, PathMix, no_weight_decay
from convattn.layers.shift_convolution import ShiftConvolution, ShiftKind
from convattn.layers.spatial_reduction_forms import (
    REDUCED_FORMS,
    ReducedFormChoice,
    ReparameterizedReduction,
    attend_tokens,
    both_paths,
    fold_reduced,
)
from convattn.layers.tokens import as_map, as_tokens, crop, pad_to_multiple
from convattn.ops._recording import are_sizes_free
from convattn.ops.neighborhood import IntPair


class SpatialReductionProjection(Layer):
    """q from every token, k and v from the map reduced by a strided convolution and a layer norm (PVT).

    A map that the ratio does not divide is filled up with zeros at the right and at the bottom.

    Args:
        channels: C.
        sr_ratio: side of the square of pixels that becomes one key; 1: k and v come from the tokens themselves.
        num_prefix_tokens: how many tokens before those of the map, such as a class token; they are not reduced.

    Raises:
        ValueError: a ratio below 1.

    Example:
        >>> import torch
        >>> q, k, v = SpatialReductionProjection(8, sr_ratio=2)(torch.randn(1, 15, 8), (3, 5))
        >>> q.shape, k.shape
        (torch.Size([1, 15, 8]), torch.Size([1, 6, 8]))
    """

    shown = ("sr_ratio", "num_prefix_tokens")

    def __init__(
        self, channels: int, *, sr_ratio: int = 1, num_prefix_tokens: int = 0, **made: Unpack[Factory]
    ) -> None:
        super().__init__()
        made = self._factory(made)
        check_counts(channels=channels, sr_ratio=sr_ratio)
        self.sr_ratio, self.num_prefix_tokens = sr_ratio, num_prefix_tokens
        self.q = nn.Linear(channels, channels, **made)
        self.kv = nn.Linear(channels, 2 * channels, **made)
        self.sr: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(channels, channels, sr_ratio, sr_ratio, **made)
            self.norm = nn.LayerNorm(channels, **made)

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, p + H W, C]`` -> q ``[B, p + H W, C]``, k and v ``[B, p + ceil(H/r) ceil(W/r), C]``."""
        source = x
        if self.sr is not None and self.norm is not None:
            prefix, pixels = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
            reduced = self.norm(as_tokens(self.sr(pad_to_multiple(as_map(pixels, size), self.sr_ratio))))
            source = torch.cat([prefix, reduced], 1) if self.num_prefix_tokens else reduced
        k, v = self.kv(source).split(self.q.out_features, -1)
        return self.q(x), k, v

    def full_maps(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The tokens as maps, without prefix: q ``[B, C, r h, r w]``, zeros at its end, k and v ``[B, C, h, w]``."""
        ratio, prefix = self.sr_ratio, self.num_prefix_tokens
        cells = ((size[0] + ratio - 1) // ratio, (size[1] + ratio - 1) // ratio)
        maps = [pad_to_multiple(as_map(q[:, prefix:], size), ratio)]
        maps += [as_map(tokens[:, prefix:], cells) for tokens in (k, v)]
        # regrouping the channels of a channels_last map would tie an exported size
        return [x.contiguous() for x in maps] if are_sizes_free() else maps

    def full_tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """A map ``[B, C, r h, r w]`` -> ``[B, p + H W, C]``, the prefix zero."""
        tokens = as_tokens(crop(x, size))
        return F.pad(tokens, (0, 0, self.num_prefix_tokens, 0)) if self.num_prefix_tokens else tokens


class SpatialReductionAttention(Layer):
    """Global attention with few keys, the attention of PVT: ``projection``, then ``attention``.

    Source: Wang et al., *Pyramid Vision Transformer*, ICCV 2021, section 3.3.

    Args:
        channels: C.
        num_heads: N; must divide ``channels``.
        sr_ratio: see :class:`SpatialReductionProjection`.
        num_prefix_tokens: see :class:`SpatialReductionProjection`.

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``, a ratio below 1.

    Example:
        >>> import torch
        >>> SpatialReductionAttention(8, num_heads=2, sr_ratio=4)(torch.randn(2, 48, 8), (8, 6)).shape
        torch.Size([2, 48, 8])
    """

    def __init__(
        self, channels: int, *, num_heads: int, sr_ratio: int = 1, num_prefix_tokens: int = 0, **made: Unpack[Factory]
    ) -> None:
        super().__init__()
        self.projection = SpatialReductionProjection(
            channels, sr_ratio=sr_ratio, num_prefix_tokens=num_prefix_tokens, **made
        )
        self.attention: nn.Module = GlobalAttention(channels, num_heads=num_heads, output="projected", **made)

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, p + H W, C]`` and ``(H, W)`` -> ``[B, p + H W, C]``."""
        return attend_tokens(self.attention, *self.projection(x, size))


class SpatialReductionACmix(SpatialReductionAttention, Folds):
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

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``, a ratio below 1, an even kernel, an unknown option.

    Example:
        >>> import torch
        >>> SpatialReductionACmix(8, num_heads=2, sr_ratio=4)(torch.randn(2, 48, 8), (8, 6)).shape
        torch.Size([2, 48, 8])
    """

    forms = REDUCED_FORMS
    reparameterized: ReparameterizedReduction | None

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
        **made: Unpack[Factory],
    ) -> None:
        super().__init__(channels, num_heads=num_heads, sr_ratio=sr_ratio, num_prefix_tokens=num_prefix_tokens, **made)
        self.convolution: nn.Module = ShiftConvolution(
            channels, kernel_size=kernel_size, num_heads=num_heads, shift=shift, **made
        )
        self.mix = PathMix(mix, **made)
        self.reparameterized = None

    @traced_as_one
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, p + H W, C]`` and ``(H, W)`` -> ``[B, p + H W, C]``."""
        if self.reparameterized is not None:
            return self.reparameterized(x, size)
        return both_paths(self, x, size)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: α and β (timm's convention)."""
        return no_weight_decay(self)

    def reparameterize(self, form: ReducedFormChoice = "auto") -> None:
        """Fold all that is linear, for inference: same outputs, fewer and cheaper steps. In place and for good.

        timm's convention: ``timm.utils.reparameterize_model(model)`` does it to every operator of a network, and a
        second call does nothing. α goes into ``proj``, β into the convolution path.

        Args:
            form: ``"grouped"``: the fully connected layer and the kernels become grouped convolutions of q and of the
                enlarged k and v; ``"unfused"``: α and β alone fold. ``"auto"``: the fewest multiply-adds, ``"grouped"``
                being given some more for reading its inputs in one pass.

        Raises:
            ValueError: an unknown form, or another one than an earlier call chose.
            TypeError: the convolution path was replaced by something that does not fold.

        Example:
            >>> import torch
            >>> layer, x = SpatialReductionACmix(8, num_heads=2, sr_ratio=4), torch.randn(2, 48, 8)
            >>> before = layer(x, (8, 6))
            >>> layer.reparameterize()
            >>> layer.reparameterized.form, bool(torch.allclose(layer(x, (8, 6)), before, atol=1e-5))
            ('grouped', True)
        """
        parts = "projection", "attention", "convolution", "mix"
        self._take_form(form, lambda: fold_reduced(self, form), *parts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Also what version 0.1 saved of an inference form: its parts were the operator's own."""
        if self.reparameterized is not None:
            for name in self.reparameterized.state_dict():
                if f"{prefix}{name}" in state_dict:
                    state_dict[f"{prefix}reparameterized.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *others)
