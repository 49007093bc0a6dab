"""ViT and DeiT, whose attention is an argument: with ACmix, or plain (ACmix, section 4.5).

``timm.create_model`` knows them after ``import convattn`` as ``deit_tiny/small/base`` and
``acmix_deit_tiny/small/base``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from convattn.layers._checks import check_rates
from convattn.layers.spatial_reduction import SpatialReductionACmix, SpatialReductionAttention
from convattn.models._config import Stem, check_stem, registered
from convattn.models.pvt import AttentionFactory
from convattn.models.pvt_blocks import Block, PatchEmbed, Stage, TokenClassifier, image_size
from convattn.models.starts import from_attention, tags_of

PATCH: dict[Stem, int] = {"imagenet": 16, "small": 4}

SIZES: dict[str, tuple[int, int]] = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
"""Channels and heads."""


class VisionTransformer(TokenClassifier):
    """Vision Transformer with the attention of its blocks open: one stage of PVT without spatial reduction.

    Source: Dosovitskiy et al., *An Image is Worth 16x16 Words*, ICLR 2021; Touvron et al., *Training data-efficient
    image transformers*, ICML 2021. Any input size: an image that the patch does not divide is filled up with zeros at
    the right and at the bottom, and the position embeddings are interpolated.

    Args:
        num_classes: of the classifier, which reads the class token; 0: none.
        in_chans: channels of the images.
        img_size: the size that the position embeddings are for; None: 224, or 32 with the small stem.
        stem: ``"imagenet"``: patches of 16; ``"small"``: patches of 4, for images of about 32 pixels.
        depth: blocks.
        embed_dim: C.
        num_heads: N; must divide C.
        mlp_ratio: see :class:`convattn.models.pvt_blocks.Block`.
        operator: makes the attention of every block.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; that of the others rises to it linearly.

    Raises:
        ValueError: an unknown stem, heads that do not divide the channels.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("acmix_deit_tiny", num_classes=10, stem="small", depth=2)
        >>> net(torch.zeros(1, 3, 33, 31)).shape
        torch.Size([1, 10])
    """

    global_pool = "token"
    stem_parameters = r"^stages\.0\.(?:patch_embed|pos_embed|cls_token)"
    block_parameters = ((r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,)))

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        stem: Stem = "imagenet",
        depth: int = 12,
        embed_dim: int = 192,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        operator: AttentionFactory = SpatialReductionAttention,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stem(stem)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.in_chans, self.num_features, self.head_hidden_size = in_chans, embed_dim, embed_dim
        height, width = image_size(img_size, stem)
        grid = (math.ceil(height / PATCH[stem]), math.ceil(width / PATCH[stem]))
        make = partial(operator, embed_dim, num_heads=num_heads, sr_ratio=1, num_prefix_tokens=1)
        drops = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        blocks = [Block(embed_dim, make(), mlp_ratio=mlp_ratio, drop_path=drop) for drop in drops]
        patch_embed = PatchEmbed(in_chans, embed_dim, PATCH[stem])
        patch_embed.norm = nn.Identity()
        self.stages = nn.ModuleList([Stage(patch_embed, blocks, grid=grid, class_token="first")])
        self.feature_info = [{"num_chs": embed_dim, "reduction": PATCH[stem], "module": "stages.0"}]
        self.add_head(num_classes, drop_rate)


default_cfgs = generate_default_cfgs(
    {
        tag: cfg
        for size in SIZES
        for kind in ("", "acmix_")
        for tag, cfg in tags_of(f"deit_{size}_patch16_224", f"{kind}deit_{size}", start=bool(kind)).items()
    }
)


def _from_vit(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A ViT's weights, under timm's names or the own ones, for a network with or without ACmix."""
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        own = name if name.split(".")[0] in ("stages", "norm", "head") else f"stages.0.{name}"
        if ".attn.qkv." in own:
            channels = len(tensor) // 3
            made[own.replace(".qkv.", ".projection.q.")] = tensor[:channels]
            made[own.replace(".qkv.", ".projection.kv.")] = tensor[channels:]
        else:
            made[own.replace(".attn.proj.", ".attn.attention.proj.")] = tensor
    return from_attention(made, model)


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """``operator_args`` are options of :class:`SpatialReductionACmix`: ``kernel_size``, ``shift``, ``mix``."""
    channels, heads = SIZES[variant.rpartition("_")[2]]
    settings: dict[str, Any] = {"embed_dim": channels, "num_heads": heads}
    if variant.startswith("acmix"):
        settings["operator"] = partial(SpatialReductionACmix, **(options.pop("operator_args", None) or {}))
    settings["feature_cfg"] = {"out_indices": (0,), "feature_cls": "getter"}
    settings["pretrained_filter_fn"] = _from_vit
    return build_model_with_cfg(VisionTransformer, variant, pretrained, **(settings | options))


deit_tiny, deit_small, deit_base = (
    registered(_build, f"deit_{size}", f"DeiT-{size.capitalize()}: timm's for images of any size.") for size in SIZES
)
acmix_deit_tiny, acmix_deit_small, acmix_deit_base = (
    registered(_build, f"acmix_deit_{size}", f"DeiT-{size.capitalize()} with ACmix (section 4.5; no cost published).")
    for size in SIZES
)
