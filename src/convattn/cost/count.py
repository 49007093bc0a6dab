"""Counts a network on the meta device: no memory, no arithmetic, exact."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn.cost import formulas
from convattn.layers import ACmix, LocalAttention2d

Convention: TypeAlias = Literal["counted", "published"]

STAGES = ("stage I", "stage II attention", "stage II convolution", "rest")


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: all of them.
        macs: multiply-adds of convolutions, linear layers, matrix products and attention, for one image.
        parameters_by_stage: the parameters by table 1's stages: the projections of the operators (``"stage I"``),
            their attention and convolution paths (``"stage II ..."``), everything else (``"rest"``).
        macs_by_stage: the multiply-adds likewise.
    """

    parameters: int
    macs: int
    parameters_by_stage: dict[str, int]
    macs_by_stage: dict[str, int]


def count(
    model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224), *, convention: Convention = "counted"
) -> Cost:
    """Count one image's forward pass.

    Args:
        model: any network; it is copied to the meta device and left as it is.
        input_size: ``(C, H, W)``.
        convention: ``"counted"``: every product, attention at the resolution of its output. ``"published"``: as the
            papers count, sliding-window attention at the resolution of its *input* even where it strides, and no
            position terms.

    Raises:
        ValueError: an unknown convention.

    Example:
        >>> import timm, convattn
        >>> cost = count(timm.create_model("acmix_resnet26"), convention="published")
        >>> round(cost.parameters / 1e6, 2), round(cost.macs / 1e9, 2)
        (10.49, 2.27)
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be one of {get_args(Convention)}, got {convention!r}")
    meta = copy.deepcopy(model).to("meta").eval()
    mapping = {torch.ops.convattn.attend: formulas.attend_as_published} if convention == "published" else {}
    dtype = next((p.dtype for p in meta.parameters()), torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        meta(torch.empty(1, *input_size, device="meta", dtype=dtype))
    by_module = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(meta).__name__
    macs, parameters = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    for name, module in meta.named_modules():
        for stage, part in _parts(module).items():
            macs[stage] += by_module.get(f"{root}.{name}.{part}" if name else f"{root}.{part}", 0)
            parameters[stage] += sum(p.numel() for p in module.get_submodule(part).parameters())
    total, all_parameters = by_module.get("Global", 0), sum(p.numel() for p in meta.parameters())
    macs["rest"] = total - sum(macs.values())
    parameters["rest"] = all_parameters - sum(parameters.values())
    return Cost(all_parameters, total, parameters, macs)


def _parts(module: nn.Module) -> dict[str, str]:
    if isinstance(module, ACmix) and module.reparameterized is None:
        return {"stage I": "projection", "stage II attention": "attention", "stage II convolution": "convolution"}
    if isinstance(module, LocalAttention2d):
        return {"stage I": "projection", "stage II attention": "attention"}
    return {}
