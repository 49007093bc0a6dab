"""The public names of PVT v1 (``patch_embed1``, ``block1.0.attn.q`` ...), under this library's."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers.tokens import as_map, as_tokens
from convattn.models.pvt_blocks import Stage

_PARTS = (
    (re.compile(r"patch_embed(\d)\.(?=(?:proj|norm)\.)"), "patch_embed."),
    (re.compile(r"block(\d)\.(?=\d+\.(?:norm[12]|mlp\.fc[12]|attn\.(?:q|kv|sr|norm|proj))\.)"), "blocks."),
)
_IN_ATTENTION = (
    (re.compile(r"\.attn\.(?=(?:q|kv|sr|norm)\.)"), ".attn.projection."),
    (re.compile(r"\.attn\.(?=proj\.)"), ".attn.attention."),
)


def rename(model: nn.Module, source: dict[str, Any], ignored: dict[str, str]) -> dict[str, Tensor]:
    """Take the public names of a PVT v1 out of a checkpoint and return its tensors under those of ``model``.

    Tables of position embeddings for another image size are interpolated, as the public code does when it runs, and
    their class token's row is left out where the model has no class token.

    Args:
        model: a :class:`convattn.models.pvt.PVT`, with or without ACmix; not reparameterized.
        source: the checkpoint; what is taken is removed from it.
        ignored: gets the names without effect, with the reason.

    Raises:
        TypeError: another network.
        ValueError: a table of position embeddings that is of another size and not for a square image.

    Example:
        >>> import timm, torch
        >>> net = timm.create_model("pvt_v1_tiny", embed_dims=(8, 16, 40, 64))
        >>> sorted(rename(net, {"block1.0.attn.q.bias": torch.zeros(8), "pos_embed2": torch.zeros(1, 49, 16)}, {}))
        ['stages.0.blocks.0.attn.projection.q.bias', 'stages.1.pos_embed']
    """
    stages: Any = getattr(model, "stages", None)
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise TypeError(f"expected a PVT, got {type(model).__name__}; a features_only network holds one as .model")
    mapped: dict[str, Tensor] = {}
    target = model.state_dict()
    for name in list(source):
        renamed = _renamed(name, len(stages))
        if renamed is not None:
            mapped[renamed] = source.pop(name)
        elif name.split(".")[0] in ("norm", "head") and name not in target:
            source.pop(name)
            ignored[name] = "this network gives maps and has no such layer"
    for i, stage in enumerate(stages, 1):
        if isinstance(source.get(f"pos_embed{i}"), Tensor):
            mapped[f"stages.{i - 1}.pos_embed"] = _table_for(stage, source.pop(f"pos_embed{i}"), i)
    if "cls_token" in source:
        token = source.pop("cls_token")
        if f"stages.{len(stages) - 1}.cls_token" in target:
            mapped[f"stages.{len(stages) - 1}.cls_token"] = token
        else:
            ignored["cls_token"] = "this network has no class token"
    return mapped


def _renamed(name: str, stages: int) -> str | None:
    for pattern, ours in _PARTS:
        found = pattern.match(name)
        if found is not None and 1 <= int(found[1]) <= stages:
            renamed = f"stages.{int(found[1]) - 1}.{ours}{name[found.end() :]}"
            for part, within in _IN_ATTENTION:
                renamed = part.sub(within, renamed)
            return renamed
    return None


def _table_for(stage: Stage, table: Tensor, number: int) -> Tensor:
    """A public table with the grid of a stage; the fourth has a row for the class token before the others."""
    (height, width), tokens = stage.grid, 1 if number == 4 else 0
    prefix, pixels = table[:, :tokens], table[:, tokens:]
    if pixels.shape[1] != height * width:
        side = math.isqrt(pixels.shape[1])
        if side * side != pixels.shape[1]:
            raise ValueError(
                f"pos_embed{number} in the checkpoint has {pixels.shape[1]} rows, which is no square grid, and the "
                f"model's is {height} x {width}: build the model with the img_size that the weights were trained with"
            )
        square = as_map(pixels.double(), (side, side))
        resized = F.interpolate(square, size=(height, width), mode="bilinear", align_corners=False)
        pixels = as_tokens(resized).to(pixels.dtype)
    return torch.cat([prefix, pixels], 1) if stage.num_prefix_tokens else pixels
