"""Swin whose blocks' operator is an argument: window attention, ACmix or a convolution (ACmix, section 5.1, table 6).

The network is timm's Swin; only what lies between a block's first norm and its residual sum changes, and every size
of image is taken at run time. ``timm.create_model`` knows them after ``import convattn``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, Unpack, cast

import torch
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import swin_transformer as timm_swin
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.layers import ACmix
from convattn.layers._base import Factory
from convattn.layers._checks import check_rates
from convattn.layers._drop_in import takes_maps
from convattn.layers.path_mix import no_weight_decay
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from convattn.models._config import Stem, check_stem, imagenet_cfg, registered
from convattn.models.starts import from_attention, tags_of
from convattn.models.swin_names import rename
from convattn.ops.neighborhood import IntPair, as_pair

Compat: TypeAlias = Literal["official"]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


class OperatorFactory(Protocol):
    """Makes what replaces a block's window attention."""

    def __call__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: tuple[int, int],
        shift: tuple[int, int],
        **made: Unpack[Factory],
    ) -> nn.Module:
        """A module from ``[B, C, H, W]`` to ``[B, C, H, W]``; every second block's windows are shifted."""


class PatchEmbedding(PatchEmbed):
    """timm's patch embedding for every size: what the last row and column of patches lack is zero.

    Example:
        >>> PatchEmbedding(patch_size=4, embed_dim=8, output_fmt="NHWC")(torch.zeros(1, 3, 9, 4)).shape
        torch.Size([1, 3, 1, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, ceil(H / patch), ceil(W / patch), D]``."""
        # one number for all sizes: a stride drops what is too much, and an exported program needs no condition
        x = F.pad(x, (0, self.patch_size[1] - 1, 0, self.patch_size[0] - 1))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(timm_swin.PatchMerging):
    """timm's patch merging for every size, in a form that exports: zeros fill up an odd size.

    Example:
        >>> PatchMerging(8)(torch.zeros(1, 5, 4, 8)).shape
        torch.Size([1, 3, 2, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, ceil(H / 2), ceil(W / 2), D]``."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
        corners = [x[:, row : height + row : 2, column : width + column : 2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class SwinBlock(nn.Module):
    """One block of Swin: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        like: timm's block, whose norms, drop paths and MLP are taken over.
        operator: ``[B, C, H, W]`` -> ``[B, C, H, W]``.

    Example:
        >>> block = timm_swin.SwinTransformerBlock(8, input_resolution=(7, 7))
        >>> SwinBlock(block, nn.Conv2d(8, 8, 3, padding=1))(torch.zeros(1, 5, 6, 8)).shape
        torch.Size([1, 5, 6, 8])
    """

    def __init__(self, like: timm_swin.SwinTransformerBlock, operator: nn.Module) -> None:
        super().__init__()
        self.norm1 = like.norm1
        self.attn = operator
        self.proj_drop = like.attn.proj_drop
        self.drop_path1 = like.drop_path1
        self.norm2 = like.norm2
        self.mlp = like.mlp
        self.drop_path2 = like.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``."""
        # the permuted map is a channels_last one: nothing is copied
        mixed = self.attn(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path1(self.proj_drop(mixed))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


DROPS = ("drop_rate", "proj_drop_rate", "drop_path_rate")
"""The options of timm's Swin that say how often something is dropped."""


class SwinTransformer(timm_swin.SwinTransformer):
    """timm's Swin with the operator of its blocks and its stem open, for images of any size.

    The image is enlarged with zeros to whole patches, a stage's map to an even size before it is merged; windows that
    the border cuts are masked (:class:`convattn.layers.WindowAttention`) and keep their size, and a map that one
    window covers is not shifted. On sizes that divide by patch and window, ``operator=None`` equals timm's network.

    Args:
        operator: makes the operator of every block; None: window attention, under timm's names.
        stem: ``"imagenet"``: patches of 4; ``"small"``: patches of 1 and windows of 4, for images of about 32 pixels.
        patch_size: side of a patch, instead of the stem's.
        window_size: side of a window, instead of the stem's (7; 4 for ``"small"``).
        **options: timm's own: ``num_classes``, ``in_chans``, ``embed_dim``, ``depths``, ``num_heads``, ``mlp_ratio``,
            ``drop_rate``, ``proj_drop_rate``, ``drop_path_rate`` (0.1 by default) and the others of
            ``timm.models.swin_transformer.SwinTransformer``.

    Raises:
        ValueError: an unknown stem; ``head_dim``, ``qkv_bias=False`` or ``attn_drop_rate``, which are not offered.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("acmix_swin_tiny", num_classes=10, stem="small", embed_dim=12, depths=(1, 1, 2, 1))
        >>> net(torch.zeros(1, 3, 33, 31)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        *,
        operator: OperatorFactory | None = None,
        stem: Stem = "imagenet",
        patch_size: int | None = None,
        window_size: IntPair | None = None,
        **options: Any,
    ) -> None:
        check_stem(stem)
        for name, only in {"head_dim": None, "qkv_bias": True, "attn_drop_rate": 0.0}.items():
            if options.get(name, only) != only:
                raise ValueError(f"{name} must stay {only!r}, got {options[name]!r}")
        check_rates(**{name: rate for name, rate in options.items() if name in DROPS})
        side = as_pair((7 if stem == "imagenet" else 4) if window_size is None else window_size, "window_size")
        settings = {
            "patch_size": (4 if stem == "imagenet" else 1) if patch_size is None else patch_size,
            "window_size": side,
            "strict_img_size": False,
            "embed_layer": PatchEmbedding,
        }
        super().__init__(**(options | settings))
        layers: Any = self.layers
        for stage in layers:
            blocks = [
                SwinBlock(old, _in_place_of(old, operator or WindowAttention2d, side, shifted=index % 2 == 1))
                for index, old in enumerate(stage.blocks)
            ]
            stage.blocks = nn.Sequential(*blocks)
            if isinstance(stage.downsample, timm_swin.PatchMerging):
                stage.downsample = _any_size(stage.downsample)

    @torch.jit.ignore
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw all weights anew, as timm's Swin does."""
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            if isinstance(module, ACmix):
                _start_projection(module)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: the bias tables, every operator's α and β."""
        return super().no_weight_decay() | no_weight_decay(self)

    def set_input_size(  # type: ignore[override]  # timm's arguments, each refused by its name
        self, img_size: tuple[int, int] | None = None, **changes: Any
    ) -> None:
        """Nothing to do: every size is taken at run time.

        Raises:
            ValueError: another patch or window is asked for; these are options of the constructor.
        """
        asked = [name for name, value in changes.items() if value is not None]
        if asked:
            raise ValueError(f"set_input_size cannot change {', '.join(asked)}: give it to timm.create_model")


class RolledACmix(ACmix):
    """ACmix whose convolution path sees the cyclically rolled map, as in the authors' code (``compat="official"``).

    The map's last rows and columns then lie beside its first ones. The attention path is the same as without.

    Args:
        channels: C, in and out.
        attention: what gives the roll; it must take rolled maps.
        **options: those of :class:`convattn.ACmix`.

    Example:
        >>> path = RolledWindowAttention(8, window_size=4, num_heads=2, shift=2)
        >>> RolledACmix(8, num_heads=2, attention=path)(torch.zeros(1, 8, 8, 8)).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(self, channels: int, *, attention: RolledWindowAttention, **options: Any) -> None:
        super().__init__(channels, channels, attention=attention, **options)
        self._effective_shift = attention.effective_shift  # reparameterize() takes the attention away

    @takes_maps
    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; ``[C, H, W]`` likewise."""
        rows, columns = self._effective_shift(*x.shape[-2:])
        rolled = super().forward(torch.roll(x, (-rows, -columns), (-2, -1)))
        return torch.roll(rolled, (rows, columns), (-2, -1))


class RolledWindowAttention(WindowAttention):
    """Window attention of maps that were rolled by its shift, up and left; its output is rolled likewise.

    Example:
        >>> q = k = v = torch.zeros(1, 8, 8, 8)
        >>> RolledWindowAttention(8, window_size=4, num_heads=2, shift=2)(q, k, v).shape
        torch.Size([1, 8, 8, 8])
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, C, H, W]`` three times -> ``[B, C, H, W]``."""
        rows, columns = self.effective_shift(*v.shape[-2:])
        q, k, v = (torch.roll(part, (rows, columns), (-2, -1)) for part in (q, k, v))
        return torch.roll(super().forward(q, k, v), (-rows, -columns), (-2, -1))


def _any_size(old: timm_swin.PatchMerging) -> PatchMerging:
    new = PatchMerging(old.dim, old.out_dim, device="meta")
    new.norm, new.reduction = old.norm, old.reduction
    return new


def _in_place_of(
    old: timm_swin.SwinTransformerBlock, operator: OperatorFactory, side: tuple[int, int], *, shifted: bool
) -> nn.Module:
    weight = cast(Tensor, old.norm1.weight)
    return operator(
        old.dim,
        num_heads=old.attn.num_heads,
        window_size=side,
        shift=(side[0] // 2, side[1] // 2) if shifted else (0, 0),
        device=weight.device,
        dtype=weight.dtype,
    )


def _start_projection(operator: ACmix) -> None:
    """Draw stage I as Swin draws its linear layers."""
    if operator.reparameterized is None:
        nn.init.trunc_normal_(operator.projection.weight, std=0.02)
        if operator.projection.bias is not None:
            nn.init.zeros_(operator.projection.bias)


def _acmix_operator(
    channels: int,
    *,
    compat: Compat | None,
    arguments: dict[str, Any],
    window_size: tuple[int, int],
    shift: tuple[int, int],
    **like: Any,
) -> ACmix:
    """What is ``like`` another operator goes to both paths: ``num_heads``, ``device`` and ``dtype``."""
    path = RolledWindowAttention if compat == "official" else WindowAttention
    attention = path(channels, window_size=window_size, shift=shift, output_projection=True, **like)
    settings: dict[str, Any] = {"attention": attention, "convolution_bias": True} | like | arguments
    layer = RolledACmix(channels, **settings) if compat == "official" else ACmix(channels, channels, **settings)
    _start_projection(layer)
    return layer


def _convolution(channels: int, *, num_heads: int, window_size: IntPair, shift: IntPair, **made: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, **made)


default_cfgs = generate_default_cfgs(
    {
        **{
            tag: cfg
            for size in SIZES
            for kind in ("", "acmix_")
            for tag, cfg in tags_of(f"swin_{size}_patch4_window7_224", f"{kind}swin_{size}", start=bool(kind)).items()
        },
        "conv_swin_tiny": imagenet_cfg("patch_embed.proj", "head.fc", crop_pct=0.9),
    }
)


def _from_swin(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Swin's weights, under timm's names or the public ones, for a Swin-ACmix."""
    others = dict(weights)
    return from_attention(rename(model, others, {}) | others, model)


def _operator(variant: str, options: dict[str, Any]) -> OperatorFactory | None:
    """Taken out of the options: ``compat`` and ``operator_args``, the options of :class:`convattn.ACmix`."""
    if variant.startswith("conv"):
        return _convolution
    if not variant.startswith("acmix"):
        return None
    compat = options.pop("compat", None)
    if compat not in (None, "official"):
        raise ValueError(f"compat must be None or 'official', got {compat!r}")
    return partial(_acmix_operator, compat=compat, arguments=options.pop("operator_args", None) or {})


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    operator = _operator(variant, options)
    settings: dict[str, Any] = SIZES[variant.rpartition("_")[2]] | {"operator": operator} | options
    out_indices = settings.pop("out_indices", tuple(range(len(settings["depths"]))))
    # the getter gives [B, C, H, W]; timm's own Swin gives [B, H, W, C]
    features: dict[str, Any] = {"feature_cls": "getter", "out_indices": out_indices}
    return build_model_with_cfg(
        SwinTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=timm_swin.checkpoint_filter_fn if operator is None else _from_swin,
        feature_cfg=features,
        **settings,
    )


swin_tiny = registered(
    _build,
    "swin_tiny",
    "Swin-T (published: 29 M, 4.5 G, top-1 81.3): timm's ``swin_tiny_patch4_window7_224`` for images of any size.",
)
swin_small = registered(
    _build,
    "swin_small",
    "Swin-S (published: 50 M, 8.7 G, top-1 83.0): timm's ``swin_small_patch4_window7_224`` for images of any size.",
)
acmix_swin_tiny = registered(
    _build,
    "acmix_swin_tiny",
    """Swin-ACmix-T (published: 30 M, 4.6 G, top-1 81.9).

    ``compat="official"``: the convolution path sees the rolled map, as in the authors' code (:class:`RolledACmix`).
    """,
)
acmix_swin_small = registered(
    _build,
    "acmix_swin_small",
    "Swin-ACmix-S (published: 51 M, 9.0 G, top-1 83.5); ``compat`` as in :func:`acmix_swin_tiny`.",
)
swin_base = registered(
    _build,
    "swin_base",
    "Swin-B (published by its source: 88 M, 15.4 G, top-1 83.5): timm's ``swin_base_patch4_window7_224``, any size.",
)
acmix_swin_base = registered(
    _build, "acmix_swin_base", "Swin-B with ACmix; the paper has none. ``compat`` as in :func:`acmix_swin_tiny`."
)
conv_swin_tiny = registered(
    _build,
    "conv_swin_tiny",
    """Conv-Swin-T (table 6; published: 39 M, 4.5 G, top-1 80.5).

    The paper does not say what the 3x3 convolution replaces. One dense C -> C in place of window attention *and* its
    two projections meets the published parameters: 39.03 M. Kept projections would give more (before ``proj``: 41.2 M;
    after the value's share of ``qkv`` too: 43.4 M), a grouped convolution less than 30 M. Its multiply-adds are 6.08 G;
    the published 4.5 G, the same as Swin-T's, no definition of 39 M meets.
    """,
)
