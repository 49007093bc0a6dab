"""Names of the Swin-ACmix authors' and of Microsoft's Swin, whose layout the former shares."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from convattn.layers import ACmix

_OPERATOR = {
    "qkv.weight": "projection.weight",
    "qkv.bias": "projection.bias",
    "relative_position_bias_table": "attention.relative_position_bias_table",
    "proj.weight": "attention.proj.weight",
    "proj.bias": "attention.proj.bias",
    "fc.weight": "convolution.fc",
    "fc.bias": "convolution.fc_bias",
    "dep_conv.weight": "convolution.kernel",
    "rate1": "mix.alpha",
    "rate2": "mix.beta",
}
_BUFFERS = re.compile(r"(.+\.)?(attn_mask|relative_position_index)$")
_MERGING = re.compile(r"layers\.(\d+)\.(downsample\..+)$")


def rename(model: nn.Module, source: dict[str, Any], ignored: dict[str, str]) -> dict[str, Tensor]:
    """Take the public names of Swin out of ``source`` and return their tensors under those of ``model``.

    Public checkpoints merge patches at the end of a stage, timm at the start of the next; their classifier is ``head``,
    timm's ``head.fc``; an operator of the ACmix authors has ``qkv, proj, fc, dep_conv, rate1, rate2,
    relative_position_bias_table``. Weights of a plain Swin go into a Swin-ACmix too, as far as they reach.

    Args:
        model: timm's ``SwinTransformer`` or this library's, with or without ACmix.
        source: the checkpoint's tensors; what is known here is taken out.
        ignored: gets the names without effect, with the reason.

    Returns:
        Tensors under the model's names.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("swin_tiny", embed_dim=12, num_classes=2)
        >>> source = {"head.bias": torch.zeros(2), "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
        >>> list(rename(net, source, ignored := {})), source, list(ignored)
        (['head.fc.bias'], {}, ['layers.0.blocks.1.attn_mask'])
    """
    operators = {f"{name}." for name, module in model.named_modules() if isinstance(module, ACmix)}
    at_the_end = "layers.0.downsample.reduction.weight" in source
    renamed: dict[str, Tensor] = {}
    for name in list(source):
        prefix, part = _split(name, operators)
        if _BUFFERS.match(name):
            ignored[name] = "it is computed from the size of the map"
            del source[name]
        elif prefix and part == "dep_conv.bias":
            ignored[name] = "the authors' operator drops it"
            del source[name]
        elif prefix and part in _OPERATOR:
            renamed[prefix + _OPERATOR[part]] = _reshape(part, source.pop(name))
        elif name in ("head.weight", "head.bias"):
            renamed[name.replace("head.", "head.fc.")] = source.pop(name)
        elif at_the_end and (merging := _MERGING.match(name)):
            renamed[f"layers.{int(merging[1]) + 1}.{merging[2]}"] = source.pop(name)
    return renamed


def _split(name: str, operators: set[str]) -> tuple[str, str]:
    """The operator that a name belongs to and what remains; two empty strings for any other name."""
    prefix, found, part = name.partition(".attn.")
    return (prefix + found, part) if prefix + found in operators else ("", "")


def _reshape(part: str, value: Tensor) -> Tensor:
    if part == "qkv.weight":
        return value[..., None, None]
    return value.flatten(1) if part == "fc.weight" else value
