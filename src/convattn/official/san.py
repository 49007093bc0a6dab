"""Names of the public SAN ("Exploring Self-attention for Image Recognition", patchwise)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(.+)$")
_STAGE = re.compile(r"(conv|bn)(\d+)\.(.+)$")
_PROJECTION = re.compile(r"sam\.conv[123]\.(weight|bias)$")
_IN_BLOCK = {"bn1": "norm1", "bn2": "norm2", "sam.conv_w": "attn.attention.weights"}


def rename(model: nn.Module, source: dict[str, Any], ignored: dict[str, str]) -> dict[str, Tensor]:
    """Take the public names of SAN out of ``source`` and return their tensors under those of ``model``.

    Public checkpoints have ``layer0.1`` for ``stages.0.blocks.1``, ``conv0`` and ``bn0`` for ``stages.0.conv`` and
    ``stages.0.norm``, and in every block ``sam.conv1, conv2, conv3`` (q, k, v) and ``sam.conv_w``. Weights of a plain
    SAN go into a SAN-ACmix too, as far as they reach.

    Args:
        model: this library's SAN, with or without ACmix: the names are the same.
        source: the checkpoint's tensors; what is known here is taken out.
        ignored: untouched: no public name is without effect.

    Returns:
        Tensors under the model's names.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("san10", widths=(16,) * 5)
        >>> source = {"layer0.1.bn2.bias": torch.zeros(4), "conv0.weight": torch.zeros(16, 16, 1, 1)}
        >>> list(rename(net, source, {})), source
        (['stages.0.blocks.1.norm2.bias', 'stages.0.conv.weight'], {})
    """
    renamed: dict[str, Tensor] = {}
    for name in list(source):
        if name not in source:
            continue
        if block := _BLOCK.match(name):
            renamed |= _in_block(source, name, f"stages.{block[1]}.blocks.{block[2]}.", block[3])
        elif stage := _STAGE.match(name):
            part = "conv" if stage[1] == "conv" else "norm"
            renamed[f"stages.{stage[2]}.{part}.{stage[3]}"] = source.pop(name)
    return renamed


def _in_block(source: dict[str, Any], name: str, prefix: str, rest: str) -> dict[str, Tensor]:
    """One tensor of a block, or the three of its projections."""
    if projection := _PROJECTION.match(rest):
        public = name.removesuffix(rest)
        names = [f"{public}sam.conv{i}.{projection[1]}" for i in (1, 2, 3)]
        if not all(part in source for part in names):
            return {}
        return {f"{prefix}attn.projection.{projection[1]}": torch.cat([source.pop(part) for part in names])}
    for public, ours in _IN_BLOCK.items():
        if rest.startswith(f"{public}."):
            return {f"{prefix}{ours}{rest.removeprefix(public)}": source.pop(name)}
    return {f"{prefix}{rest}": source.pop(name)}
