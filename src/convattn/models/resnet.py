"""ResNets whose 3x3 convolution is an argument (ACmix, supplement A, table 2).

The network is timm's ResNet; only the operator in the middle of every bottleneck (the last 3x3 of every basic block)
changes. ``timm.create_model`` knows them after ``import convattn`` as ``{kind}_resnet{depth}``, see :data:`KINDS`.
timm owns the names ``resnet26`` (another depth pattern) and ``resnet50``, so the papers' plain twins are registered as
``conv_resnet26/38/50``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import resnet as timm_resnet
from torch import nn

from convattn.layers import ACmix, GlobalAttention2d, LocalAttention2d, MultiConvolution, XVolution
from convattn.layers._checks import check_odd, check_rates
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.involution import Involution2d
from convattn.layers.local_relation import LocalRelation2d
from convattn.layers.path_mix import no_weight_decay
from convattn.layers.pssa import PSSA
from convattn.layers.timm_operators import BottleneckAttention2d, TimmOperator2d
from convattn.models._config import Stem, check_stem, imagenet_cfg, registered
from convattn.models.starts import from_convolutions, tags_of
from convattn.ops.neighborhood import IntPair, same_padding

StridePlace: TypeAlias = Literal["operator", "projection"]
Made = TypeVar("Made", bound=nn.Module)

DEPTHS: dict[int, tuple[int, int, int, int]] = {
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (1, 2, 4, 1),
    34: (3, 4, 6, 3),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
}
BASIC_DEPTHS = (18, 34)


class OperatorFactory(Protocol):
    """Makes what replaces a block's 3x3 convolution."""

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


DROPS = ("drop_rate", "drop_path_rate", "drop_block_rate")
"""The options of timm's ResNet that say how often something is dropped."""


class ResNet(timm_resnet.ResNet):
    """timm's ResNet with the operator of its blocks, its stem and the place of its strides open.

    Args:
        operator: makes the operator of every block, in place of a bottleneck's 3x3 convolution or of the last one of
            a basic block; None keeps the convolutions. An operator brings its own initialisation, which the
            network's Kaiming initialisation does not touch.
        stages: the stages that have the operator, 1 to 4: 1 is ``layer1``, which the papers call conv2_x or
            res2, 4 is ``layer4``, conv5_x or res5. None: all.
        stem: ``"imagenet"``: 7x7 stride 2 and max-pool; ``"small"``: 3x3 stride 1 and no pool, for images of about
            32 pixels.
        stride_place: ``"operator"``: the middle convolution strides (as the authors' ImageNet code);
            ``"projection"``: the first 1x1 does (as in their detection figures). A basic block has one place, its
            first 3x3.
        **options: timm's own: ``block``, ``layers``, ``num_classes``, ``in_chans``, ``channels``, ``drop_path_rate``,
            ``output_stride`` and the others of ``timm.models.resnet.ResNet``.

    Raises:
        ValueError: an unknown stem, place of the stride or stage.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("acmix_resnet14", num_classes=10, stem="small", channels=(8, 16, 24, 32))
        >>> net(torch.zeros(1, 3, 33, 31)).shape
        torch.Size([1, 10])
    """

    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        *,
        operator: OperatorFactory | None = None,
        stages: Sequence[int] | None = None,
        stem: Stem = "imagenet",
        stride_place: StridePlace = "operator",
        **options: Any,
    ) -> None:
        check_stem(stem)
        if stride_place not in ("operator", "projection"):
            raise ValueError(f"stride_place must be 'operator' or 'projection', got {stride_place!r}")
        check_rates(**{name: rate for name, rate in options.items() if name in DROPS})
        super().__init__(**options)
        names = [str(info["module"]) for info in self.feature_info[1:]]
        chosen = range(1, len(names) + 1) if stages is None else _checked_stages(stages, len(names))
        for number, name in enumerate(names, 1):
            for block in getattr(self, name):
                if stride_place == "projection" and isinstance(block, timm_resnet.Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
                if operator is not None and number in chosen:
                    block.conv2 = in_place_of(block.conv2, operator)
        if stem == "small":
            self._use_small_stem()

    def _use_small_stem(self) -> None:
        old = self.conv1
        if not isinstance(old, nn.Conv2d):
            raise ValueError("stem='small' replaces a single convolution; leave stem_type at its default")
        device, dtype = old.weight.device, old.weight.dtype
        conv = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", conv)
        self.add_module("maxpool", nn.Identity())
        stem, *stages = self.feature_info
        self.feature_info = [stem | {"reduction": 1}]
        self.feature_info += [stage | {"reduction": max(1, stage["reduction"] // 4)} for stage in stages]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: every operator's α and β."""
        return no_weight_decay(self)


def _checked_stages(stages: Sequence[int], count: int) -> tuple[int, ...]:
    wrong = [stage for stage in stages if stage not in range(1, count + 1)]
    if wrong:
        raise ValueError(f"stages must lie between 1 (layer1, conv2_x) and {count} (layer{count}), got {wrong}")
    return tuple(stages)


def in_place_of(conv: nn.Conv2d, operator: Callable[..., Made]) -> Made:
    """What an :class:`OperatorFactory` makes for the place of a convolution."""
    return operator(
        conv.in_channels,
        conv.out_channels,
        stride=(conv.stride[0], conv.stride[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


@dataclass(frozen=True)
class Kind:
    """A family of ``{name}_resnet{depth}`` in timm's registry.

    Args:
        what: what replaces the 3x3 convolution, in words.
        depths: those registered.
        operator: makes it; None: the 3x3 convolution itself.
        arguments: the operator's options in this family; ``operator_args`` goes over them.
        stages: which have the operator, see :class:`ResNet`.
        notes: what is to be said of some depths.
    """

    what: str
    depths: tuple[int, ...]
    operator: Callable[..., nn.Module] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    stages: tuple[int, ...] | None = None
    notes: dict[int, str] = field(default_factory=dict)


BOTTLENECKS, OF_XVOLUTION = (14, 26, 38, 50), (14, 18, 34, 50)
"""Depths that the papers' tables of ACmix and of X-volution, and small images, ask for."""
OTHER_STEM = "RedNet-{} but for the stem, a convolution here: {} M published"
OF_ONE_STAGE = "in conv5_x; ``stages=(2,)`` for the paper's stage3, (3,) for stage4"
WITH_GLOBAL = "in conv5_x; ``operator_args={'attention': 'global'}``: X-volution(SA)"

KINDS: dict[str, Kind] = {
    "conv": Kind(
        "the 3x3 convolution; ``operator_args={'kernel_size': 5}``: another kernel",
        (14, 18, 26, 34, 38, 50),
        notes={
            14: "one bottleneck a stage, for small images and quick comparisons",
            18: "basic blocks: timm's ``resnet18`` with this module's options",
            26: "the papers' depths 1, 2, 4, 1",
            34: "basic blocks: timm's ``resnet34`` with this module's options",
            38: "depths 2, 3, 5, 2",
            50: "depths 3, 4, 6, 3: timm's ``resnet50`` with this module's options",
        },
    ),
    "sasa": Kind("stand-alone self-attention", (14, 18, 26, 38, 50), LocalAttention2d, {"num_heads": 4}),
    "acmix": Kind(
        "ACmix",
        (14, 18, 26, 38, 50),
        ACmix,
        {"num_heads": 4},
        notes={
            26: "published: 10.6 M, 2.3 G, top-1 76.1",
            38: "published: 14.6 M, 2.9 G, top-1 77.4",
            50: "published: 18.6 M, 3.6 G, top-1 77.8",
        },
    ),
    "lr": Kind(
        "the local relation layer",
        BOTTLENECKS,
        LocalRelation2d,
        notes={
            26: "``layers=(2, 2, 2, 2), base_width=100``: LR-Net-26 but for its stem, 14.7 M published",
            50: "``base_width=100``: LR-Net-50 but for its stem, 23.3 M published",
        },
    ),
    "aa": Kind(
        "attention-augmented convolution",
        (14, 18, 26, 34, 38, 50),
        AugmentedConv2d,
        {"num_heads": 8},
        (2, 3, 4),
        {50: "in conv3_x to conv5_x as in the source: 25.8 M published"},
    ),
    "bot": Kind(
        "bottleneck self-attention",
        (14, 18, 26, 38, 50),
        BottleneckAttention2d,
        stages=(4,),
        notes={50: "in conv5_x as in the source, BoT50: 20.8 M published"},
    ),
    "involution": Kind(
        "involution",
        (14, 18, 26, 34, 38, 50),
        Involution2d,
        notes={depth: OTHER_STEM.format(depth, size) for depth, size in ((26, 9.2), (38, 12.4), (50, 15.5))},
    ),
    "halo": Kind("timm's halo attention", BOTTLENECKS, TimmOperator2d, {"kind": "halo"}),
    "lambda": Kind("timm's lambda layer", BOTTLENECKS, TimmOperator2d, {"kind": "lambda"}),
    "global": Kind(
        "self-attention over the whole map",
        OF_XVOLUTION,
        GlobalAttention2d,
        stages=(4,),
        notes=dict.fromkeys((34, 50), "in conv5_x, as X-volution's comparison"),
    ),
    "pssa": Kind(
        "pixel shift self-attention", OF_XVOLUTION, PSSA, stages=(4,), notes=dict.fromkeys((34, 50), OF_ONE_STAGE)
    ),
    "multiconv": Kind(
        "X-volution's convolutions alone",
        OF_XVOLUTION,
        MultiConvolution,
        stages=(4,),
        notes={34: "in conv5_x", 50: "in conv5_x, table 2's second row"},
    ),
    "xvolution": Kind("X-volution", OF_XVOLUTION, XVolution, stages=(4,), notes=dict.fromkeys((34, 50), WITH_GLOBAL)),
}

STARTS = ("acmix", "multiconv", "xvolution")
"""The families whose operator can hold a 3x3 convolution."""

PUBLIC_DEPTHS = (18, 34, 50)
"""Those at which timm's ResNet is the same network, and has public weights."""


def _cfgs(name: str, depth: int) -> dict[str, Any]:
    """What timm's registry keeps of a network: its pretrained weights, where there are some."""
    if depth in PUBLIC_DEPTHS and name in ("conv", *STARTS):
        return tags_of(f"resnet{depth}", f"{name}_resnet{depth}", start=name != "conv")
    return {f"{name}_resnet{depth}": imagenet_cfg("conv1", "fc")}


default_cfgs = generate_default_cfgs(
    {tag: cfg for name, kind in KINDS.items() for depth in kind.depths for tag, cfg in _cfgs(name, depth).items()}
)


def plain_convolution(in_channels: int, out_channels: int, *, kernel_size: IntPair = 3, **geometry: Any) -> nn.Conv2d:
    """A block's convolution with another kernel, drawn as timm's ResNet draws its own: figure 3a of X-volution.

    Args:
        in_channels: C_in.
        out_channels: C.
        kernel_size: odd.
        **geometry: stride, dilation, device and dtype.

    Raises:
        ValueError: an even kernel.

    Example:
        >>> plain_convolution(4, 8, kernel_size=5, stride=(1, 1), dilation=(1, 1)).padding
        (2, 2)
    """
    kernel = check_odd(kernel_size)
    padding = same_padding(kernel, geometry["dilation"])
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False, **geometry)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    name, _, depth = variant.partition("_resnet")
    kind = KINDS[name]
    block = timm_resnet.BasicBlock if int(depth) in BASIC_DEPTHS else timm_resnet.Bottleneck
    settings: dict[str, Any] = {"block": block, "layers": DEPTHS[int(depth)]}
    given = options.pop("operator_args", None) or {}
    if kind.operator is not None:
        settings |= {"operator": partial(kind.operator, **(kind.arguments | given)), "stages": kind.stages}
    elif given:
        settings["operator"] = partial(plain_convolution, **given)
    settings["pretrained_filter_fn"] = from_convolutions if name in STARTS else None
    return build_model_with_cfg(ResNet, variant, pretrained, **(settings | options))


def _entries(name: str) -> list[Callable[..., ResNet]]:
    """Register ``{name}_resnet{depth}`` of all depths; ``operator_args`` are options of the kind's operator."""
    kind = KINDS[name]

    def entry(depth: int) -> Callable[..., ResNet]:
        note = f" ({kind.notes[depth]})" if depth in kind.notes else ""
        return registered(_build, f"{name}_resnet{depth}", f"ResNet-{depth} with {kind.what}{note}.")

    return [entry(depth) for depth in kind.depths]


conv_resnet14, conv_resnet18, conv_resnet26, conv_resnet34, conv_resnet38, conv_resnet50 = _entries("conv")
sasa_resnet14, sasa_resnet18, sasa_resnet26, sasa_resnet38, sasa_resnet50 = _entries("sasa")
acmix_resnet14, acmix_resnet18, acmix_resnet26, acmix_resnet38, acmix_resnet50 = _entries("acmix")
lr_resnet14, lr_resnet26, lr_resnet38, lr_resnet50 = _entries("lr")
aa_resnet14, aa_resnet18, aa_resnet26, aa_resnet34, aa_resnet38, aa_resnet50 = _entries("aa")
bot_resnet14, bot_resnet18, bot_resnet26, bot_resnet38, bot_resnet50 = _entries("bot")
(
    involution_resnet14,
    involution_resnet18,
    involution_resnet26,
    involution_resnet34,
    involution_resnet38,
    involution_resnet50,
) = _entries("involution")
halo_resnet14, halo_resnet26, halo_resnet38, halo_resnet50 = _entries("halo")
lambda_resnet14, lambda_resnet26, lambda_resnet38, lambda_resnet50 = _entries("lambda")
global_resnet14, global_resnet18, global_resnet34, global_resnet50 = _entries("global")
pssa_resnet14, pssa_resnet18, pssa_resnet34, pssa_resnet50 = _entries("pssa")
multiconv_resnet14, multiconv_resnet18, multiconv_resnet34, multiconv_resnet50 = _entries("multiconv")
xvolution_resnet14, xvolution_resnet18, xvolution_resnet34, xvolution_resnet50 = _entries("xvolution")
