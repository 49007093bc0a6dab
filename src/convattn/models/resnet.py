"""ResNets whose 3x3 convolution is an argument (ACmix, supplement A, table 2).

The network is timm's ResNet; only the operator in the middle of every bottleneck changes. ``timm.create_model`` knows
them after ``import convattn``. timm owns the names ``resnet26`` (another depth pattern) and ``resnet50``, so the
papers' plain twins are registered as ``conv_resnet26/38/50``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import resnet as timm_resnet
from torch import nn

from convattn.layers import ACmix, LocalAttention2d

Stem: TypeAlias = Literal["imagenet", "small"]
StridePlace: TypeAlias = Literal["operator", "projection"]

DEPTHS: dict[int, tuple[int, int, int, int]] = {
    14: (1, 1, 1, 1),
    26: (1, 2, 4, 1),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
}


class OperatorFactory(Protocol):
    """Makes what stands in place of a bottleneck's 3x3 convolution."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> nn.Module:
        """A module from ``[B, C_in, H, W]`` to ``[B, C_out, ceil(H/stride), ceil(W/stride)]``."""


class ResNet(timm_resnet.ResNet):
    """timm's ResNet with the operator of its bottlenecks, its stem and the place of its strides open.

    Args:
        operator: makes the operator of every bottleneck; None keeps the 3x3 convolution. An operator brings its own
            initialisation, which the network's Kaiming initialisation does not touch.
        stem: ``"imagenet"``: 7x7 stride 2 and max-pool; ``"small"``: 3x3 stride 1 and no pool, for images of about
            32 pixels.
        stride_place: ``"operator"``: the middle convolution strides (as the authors' ImageNet code);
            ``"projection"``: the first 1x1 does (as in their detection figures).
        **options: timm's own: ``block``, ``layers``, ``num_classes``, ``in_chans``, ``channels``, ``drop_path_rate``,
            ``output_stride`` and the others of ``timm.models.resnet.ResNet``.

    Raises:
        ValueError: an unknown stem or place of the stride.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("acmix_resnet14", num_classes=10, stem="small", channels=(8, 16, 24, 32))
        >>> net(torch.zeros(1, 3, 33, 31)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        *,
        operator: OperatorFactory | None = None,
        stem: Stem = "imagenet",
        stride_place: StridePlace = "operator",
        **options: Any,
    ) -> None:
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        if stride_place not in ("operator", "projection"):
            raise ValueError(f"stride_place must be 'operator' or 'projection', got {stride_place!r}")
        super().__init__(**options)
        for block in self.modules():
            if isinstance(block, timm_resnet.Bottleneck):
                if stride_place == "projection":
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
                if operator is not None:
                    block.conv2 = _in_place_of(block.conv2, operator)
        if stem == "small":
            self._use_small_stem()

    def _use_small_stem(self) -> None:
        old = self.conv1
        if not isinstance(old, nn.Conv2d):
            raise ValueError("stem='small' replaces a single convolution; leave stem_type at its default")
        like = {"device": old.weight.device, "dtype": old.weight.dtype}
        self.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False, **like)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        stem, *stages = self.feature_info
        self.feature_info = [stem | {"reduction": 1}]
        self.feature_info += [stage | {"reduction": max(1, stage["reduction"] // 4)} for stage in stages]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: every operator's α and β."""
        return no_weight_decay(self)


def no_weight_decay(model: nn.Module) -> set[str]:
    """What the operators inside any network ask to be left out of weight decay, by the network's names.

    Example:
        >>> from convattn import ACmix
        >>> sorted(no_weight_decay(nn.Sequential(ACmix(8, 8))))
        ['0.mix.alpha', '0.mix.beta']
    """
    named = (
        (f"{prefix}.{name}" if prefix else name)
        for prefix, module in model.named_modules()
        if isinstance(module, ACmix)
        for name in module.no_weight_decay()
    )
    return set(named)


def _in_place_of(conv: nn.Conv2d, operator: OperatorFactory) -> nn.Module:
    return operator(
        conv.in_channels,
        conv.out_channels,
        stride=(conv.stride[0], conv.stride[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {f"{kind}_resnet{depth}": _cfg() for kind in ("conv", "sasa", "acmix") for depth in DEPTHS}
)


def _build(variant: str, operator: OperatorFactory | None, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    settings = {"block": timm_resnet.Bottleneck, "layers": DEPTHS[int(variant[-2:])], "operator": operator}
    return build_model_with_cfg(ResNet, variant, pretrained, **(settings | options))


def _acmix(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """ACmix with 4 heads, as in supplement C; ``operator_args`` are options of :class:`convattn.ACmix`."""
    arguments = {"num_heads": 4} | (options.pop("operator_args", None) or {})
    return _build(variant, partial(ACmix, **arguments), pretrained, options)


def _sasa(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """4 heads, as in ACmix's comparison; ``operator_args`` are options of :class:`convattn.LocalAttention2d`."""
    arguments = {"num_heads": 4} | (options.pop("operator_args", None) or {})
    return _build(variant, partial(LocalAttention2d, **arguments), pretrained, options)


@register_model
def conv_resnet14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A plain ResNet of one bottleneck a stage, for small images and quick comparisons."""
    return _build("conv_resnet14", None, pretrained, kwargs)


@register_model
def conv_resnet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-26 with the papers' depths 1, 2, 4, 1."""
    return _build("conv_resnet26", None, pretrained, kwargs)


@register_model
def conv_resnet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-38, depths 2, 3, 5, 2."""
    return _build("conv_resnet38", None, pretrained, kwargs)


@register_model
def conv_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, depths 3, 4, 6, 3: timm's ``resnet50`` with this module's options."""
    return _build("conv_resnet50", None, pretrained, kwargs)


@register_model
def sasa_resnet14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stand-alone self-attention in a ResNet of one bottleneck a stage."""
    return _sasa("sasa_resnet14", pretrained, kwargs)


@register_model
def sasa_resnet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stand-alone self-attention in ResNet-26."""
    return _sasa("sasa_resnet26", pretrained, kwargs)


@register_model
def sasa_resnet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stand-alone self-attention in ResNet-38."""
    return _sasa("sasa_resnet38", pretrained, kwargs)


@register_model
def sasa_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stand-alone self-attention in ResNet-50."""
    return _sasa("sasa_resnet50", pretrained, kwargs)


@register_model
def acmix_resnet14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ACmix in a ResNet of one bottleneck a stage."""
    return _acmix("acmix_resnet14", pretrained, kwargs)


@register_model
def acmix_resnet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-ACmix-26 (published: 10.6 M, 2.3 G, top-1 76.1)."""
    return _acmix("acmix_resnet26", pretrained, kwargs)


@register_model
def acmix_resnet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-ACmix-38 (published: 14.6 M, 2.9 G, top-1 77.4)."""
    return _acmix("acmix_resnet38", pretrained, kwargs)


@register_model
def acmix_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-ACmix-50 (published: 18.6 M, 3.6 G, top-1 77.8)."""
    return _acmix("acmix_resnet50", pretrained, kwargs)
