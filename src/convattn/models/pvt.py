"""PVT v1 and PVT-ACmix, whose attention is an argument (ACmix, supplement A, table 4).

timm has PVT v2 alone, so the first version is registered as ``pvt_v1_tiny/small/medium/large``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from convattn.layers._checks import check_rates
from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.models._config import Stem, check_stem, imagenet_cfg, registered
from convattn.models.pvt_blocks import Block, PatchEmbed, Stage, TokenClassifier, image_size
from convattn.models.pvt_names import rename
from convattn.models.starts import from_attention

Pooling: TypeAlias = Literal["token", "avg"]
Four: TypeAlias = tuple[int, int, int, int]

DEPTHS: dict[str, Four] = {
    "tiny": (2, 2, 2, 2),
    "small": (3, 4, 6, 3),
    "medium": (3, 4, 18, 3),
    "large": (3, 8, 27, 3),
}


class AttentionFactory(Protocol):
    """Makes the attention of a block."""

    def __call__(self, channels: int, *, num_heads: int, sr_ratio: int, num_prefix_tokens: int) -> nn.Module:
        """A module from ``[B, p + H W, C]`` and ``(H, W)`` to ``[B, p + H W, C]``."""


class PVT(TokenClassifier):
    """Pyramid Vision Transformer, first version, with the attention of its blocks open.

    Source: Wang et al., *Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without
    Convolutions*, ICCV 2021. Any input size: a map that a patch or a spatial reduction does not divide is filled up
    with zeros at the right and at the bottom, so a stage of stride s measures ceil(H/s) x ceil(W/s); multiples of 32
    need none of it.

    Args:
        num_classes: of the classifier; 0: none.
        in_chans: channels of the images.
        img_size: the size that the tables of position embeddings are for; None: 224, or 32 with the small stem.
        stem: ``"imagenet"``: the first patch is 4x4, strides 4 to 32; ``"small"``: it is 2x2 and the spatial reduction
            is half as strong, strides 2 to 16, for images of about 32 pixels.
        depths: blocks of every stage.
        embed_dims: channels of every stage.
        num_heads: of every stage.
        mlp_ratios: of every stage, see :class:`Block`.
        sr_ratios: spatial reduction of every stage; None: 8, 4, 2, 1, or 4, 2, 1, 1 with the small stem.
        operator: makes the attention of every block.
        global_pool: ``"token"``: a class token in the last stage, which the classifier reads, as published;
            ``"avg"``: no class token, the classifier reads the mean of the map. The default with ``features_only`` is
            ``"avg"``: the authors' detection and segmentation code has no class token.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; that of the others rises to it linearly.

    Raises:
        ValueError: an unknown stem or pooling, an image without pixels, heads that do not divide the channels.

    Example:
        >>> import timm, torch
        >>> net = timm.create_model("acmix_pvt_tiny", num_classes=10, stem="small", embed_dims=(8, 16, 40, 64))
        >>> net(torch.zeros(1, 3, 33, 31)).shape
        torch.Size([1, 10])
    """

    stem_parameters = r"^stages\.0\.(?:patch_embed|pos_embed)"
    block_parameters = (
        (r"^stages\.(\d+)\.(?:patch_embed|pos_embed|cls_token)", (0,)),
        (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        (r"^norm", (99999,)),
    )

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        stem: Stem = "imagenet",
        depths: Four = DEPTHS["tiny"],
        embed_dims: Four = (64, 128, 320, 512),
        num_heads: Four = (1, 2, 5, 8),
        mlp_ratios: tuple[float, float, float, float] = (8, 8, 4, 4),
        sr_ratios: Four | None = None,
        operator: AttentionFactory = SpatialReductionAttention,
        global_pool: Pooling = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        sr_ratios = sr_ratios or ((8, 4, 2, 1) if stem == "imagenet" else (4, 2, 1, 1))
        per_stage = {"depths": depths, "embed_dims": embed_dims, "num_heads": num_heads, "mlp_ratios": mlp_ratios}
        _check(stem, global_pool, {**per_stage, "sr_ratios": sr_ratios})
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.in_chans, self.global_pool = in_chans, global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        patch_sizes = (4 if stem == "imagenet" else 2, 2, 2, 2)
        grid = image_size(img_size, stem)
        drops = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages: list[Stage] = []
        self.feature_info = []
        for i, (c_in, channels) in enumerate(pairwise((in_chans, *embed_dims))):
            class_token: Literal["first"] | None = "first" if i == 3 and global_pool == "token" else None
            make = partial(
                operator, num_heads=num_heads[i], sr_ratio=sr_ratios[i], num_prefix_tokens=1 if class_token else 0
            )
            blocks = [
                Block(channels, make(channels), mlp_ratio=mlp_ratios[i], drop_path=next(drops))
                for _ in range(depths[i])
            ]
            grid = (math.ceil(grid[0] / patch_sizes[i]), math.ceil(grid[1] / patch_sizes[i]))
            patch_embed = PatchEmbed(c_in, channels, patch_sizes[i])
            stages.append(Stage(patch_embed, blocks, grid=grid, class_token=class_token))
            reduction = math.prod(patch_sizes[: i + 1])
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.ModuleList(stages)
        self.add_head(num_classes, drop_rate)


def _check(stem: str, global_pool: str, per_stage: Mapping[str, Sequence[float]]) -> None:
    check_stem(stem)
    if global_pool not in get_args(Pooling):
        raise ValueError(f"global_pool must be 'token' or 'avg', got {global_pool!r}")
    for name, values in per_stage.items():
        if len(values) != 4:
            raise ValueError(f"{name} must have a number for each of the 4 stages, got {values}")


PUBLIC = "https://github.com/whai362/PVT/releases/download/v2/pvt_{}.pth"
"""The authors' weights, trained on ImageNet-1k."""


SOURCES = {
    **{f"pvt_v1_{size}.in1k": size for size in DEPTHS},
    **{f"acmix_pvt_{size}.init_in1k": size for size in DEPTHS},
}
"""Which of them each network takes."""

default_cfgs = generate_default_cfgs(
    {
        name: imagenet_cfg("stages.0.patch_embed.proj", "head") | {"url": PUBLIC.format(size)}
        for name, size in SOURCES.items()
    }
)


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """``operator_args`` are options of :class:`SpatialReductionACmix`: ``kernel_size``, ``shift``, ``mix``."""
    settings: dict[str, Any] = {"depths": DEPTHS[variant.split("_")[-1]]}
    if variant.startswith("acmix"):
        settings["operator"] = partial(SpatialReductionACmix, **(options.pop("operator_args", None) or {}))
    if options.get("features_only"):
        settings["global_pool"] = "avg"
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    settings |= {"feature_cfg": feature_cfg, "pretrained_filter_fn": _from_pvt}
    return build_model_with_cfg(PVT, variant, pretrained, **(settings | options))


def _from_pvt(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A PVT's weights, under the public names or the own ones, for a network with or without ACmix."""
    others = dict(weights)
    return from_attention(_without_class_token(rename(model, others, {}) | others, model), model)


def _without_class_token(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A classifier's weights for a network of maps, which has no class token: that goes, with its position."""
    if not isinstance(model, PVT):
        return weights
    token, table = (f"stages.{len(model.stages) - 1}.{name}" for name in ("cls_token", "pos_embed"))
    if model.stages[-1].num_prefix_tokens or token not in weights:
        return weights
    kept = {name: tensor for name, tensor in weights.items() if name != token}
    return {**kept, table: weights[table][:, 1:]}


pvt_v1_tiny = registered(_build, "pvt_v1_tiny", "PVT-Tiny (published: 13 M, 1.9 G, top-1 75.1).")
pvt_v1_small = registered(_build, "pvt_v1_small", "PVT-Small (published: 25 M, 3.8 G, top-1 79.8).")
pvt_v1_medium = registered(_build, "pvt_v1_medium", "PVT-Medium (published: 44.2 M, 6.7 G, top-1 81.2).")
pvt_v1_large = registered(_build, "pvt_v1_large", "PVT-Large (published: 61.4 M, 9.8 G, top-1 81.7).")
acmix_pvt_tiny = registered(_build, "acmix_pvt_tiny", "PVT-ACmix-T (published: 13 M, 2.0 G, top-1 78.0).")
acmix_pvt_small = registered(_build, "acmix_pvt_small", "PVT-ACmix-S (published: 25 M, 3.9 G, top-1 81.7).")
acmix_pvt_medium = registered(_build, "acmix_pvt_medium", "PVT-Medium with ACmix; the paper has none.")
acmix_pvt_large = registered(_build, "acmix_pvt_large", "PVT-Large with ACmix; the paper has none.")
