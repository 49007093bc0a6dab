"""SAN and SAN-ACmix, whose attention is an argument (ACmix, supplement A, table 3).

``timm.create_model`` knows them after ``import convattn`` as ``san10/15/19``, ``pairwise_san10/15/19`` and
``acmix_san10/15/19``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_notrace_module
from torch import Tensor, nn

from convattn.layers import ACmix
from convattn.layers._checks import check_rates, is_hooked
from convattn.layers.pairwise import PairwiseAttention2d
from convattn.layers.patchwise import PatchwiseAttention, PatchwiseAttention2d
from convattn.models._config import Stem, check_stem, imagenet_cfg, registered
from convattn.models._stages import Maps, StagedClassifier
from convattn.models.san_blocks import REDUCTION, Block, HalvingPool, Stage
from convattn.ops._dispatch import runs_directly, working_set_bytes
from convattn.ops._layout import memory_format_of

LAYERS: dict[int, tuple[int, ...]] = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
KERNELS = (3, 7, 7, 7, 7)
WIDTHS = (64, 256, 512, 1024, 2048)

register_notrace_module(PatchwiseAttention2d)
register_notrace_module(PairwiseAttention2d)


class OperatorFactory(Protocol):
    """Makes the operator of a block."""

    def __call__(self, in_channels: int, out_channels: int, *, kernel_size: int) -> nn.Module:
        """A module from ``[B, C_in, H, W]`` to ``[B, C_out, H, W]``."""


def patchwise_acmix(in_channels: int, out_channels: int, *, kernel_size: int, **options: Any) -> ACmix:
    """SAN-ACmix's operator (ACmix, supplement C): both paths over q, k and four quarters of v.

    q and k have C/4 channels each and v has C, so the convolution path connects six maps of C/4 channels.

    Args:
        in_channels: C_in.
        out_channels: C, a multiple of 4.
        kernel_size: of the attention's window.
        **options: of :class:`convattn.ACmix`: ``shift``, ``mix``, its own ``kernel_size`` as ``convolution_kernel``.

    Example:
        >>> patchwise_acmix(64, 16, kernel_size=7).convolution.maps
        6
    """
    attention = PatchwiseAttention(out_channels, kernel_size=kernel_size)
    convolution_kernel = options.pop("convolution_kernel", 3)
    return ACmix(in_channels, out_channels, kernel_size=convolution_kernel, attention=attention, **options)


class SAN(StagedClassifier):
    """Self-Attention Network with patchwise attention, the operator of its blocks open.

    Source: Zhao et al., *Exploring Self-attention for Image Recognition*, CVPR 2020. Any input size from one pixel on;
    every pooling leaves an odd last row or column out, as in the source, and one pixel as it is.

    Args:
        num_classes: of the classifier; 0: none.
        in_chans: channels of the images.
        stem: ``"imagenet"``: strides 2 to 32; ``"small"``: the first two stages do not pool, strides 1 to 8, for
            images of about 32 pixels.
        layers: blocks of every stage.
        kernels: the attention's window in every stage.
        widths: P, channels of every stage, multiples of 16; the stem has those of the first. Operators have a
            quarter of them.
        operator: makes the operator of every block.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; that of the others rises to it linearly.

    Raises:
        ValueError: an unknown stem, options that do not name the same number of stages, widths that are no multiples
            of 16.

    Example:
        >>> import timm, torch, convattn
        >>> net = timm.create_model("acmix_san10", num_classes=10, stem="small", widths=(16, 32, 32, 48, 64))
        >>> net(torch.zeros(2, 3, 33, 31)).shape
        torch.Size([2, 10])
    """

    classifier, global_pool = "fc", "avg"
    stem_parameters = r"^(?:conv_in|bn_in)"
    block_parameters = (
        (r"^stages\.(\d+)\.conv", (0,)),
        (r"^stages\.(\d+)\.blocks\.(\d+)", None),
        (r"^stages\.(\d+)\.norm", (99999,)),
    )

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem: Stem = "imagenet",
        layers: Sequence[int] = LAYERS[10],
        kernels: Sequence[int] = KERNELS,
        widths: Sequence[int] = WIDTHS,
        operator: OperatorFactory = PatchwiseAttention2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check(stem, layers, kernels, widths)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.conv_in = nn.Conv2d(in_chans, widths[0], 1, bias=False)
        self.bn_in = nn.BatchNorm2d(widths[0])
        self.act_in = nn.ReLU(inplace=True)
        drops = iter(torch.linspace(0, drop_path_rate, sum(layers), device="cpu").tolist())
        stages: list[Stage] = []
        self.feature_info = []
        reduction = 1
        for i, (c_in, channels) in enumerate(pairwise((widths[0], *widths))):
            pools = stem == "imagenet" or i > 1
            reduction *= 2 if pools else 1
            make = partial(operator, channels, channels // REDUCTION, kernel_size=kernels[i])
            blocks = [Block(channels, make(), drop_path=next(drops)) for _ in range(layers[i])]
            stages.append(Stage(c_in, channels, blocks, pool=HalvingPool() if pools else nn.Identity()))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.ModuleList(stages)
        self.head_drop = nn.Dropout(drop_rate)
        self.make_classifier(num_classes)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of the last stage's map."""
        return x.mean((2, 3))

    def run_stages(self, x: Tensor, count: int, taken: Collection[int] = (), *, norm: bool = False) -> Maps:
        """The last stage's map, and those taken. Step by step, so that no step's input outlives it."""
        maps: list[Tensor] = []
        in_bands = self._has_stem_in_bands(x)
        x = self._pooled_bands(x) if in_bands else self._stem(x)
        for i, stage in enumerate(self.stages[:count]):
            steps = [stage] if is_hooked(stage) else stage.steps()
            for step in steps[1:] if in_bands and i == 0 else steps:
                x = step(x)
            if i in taken:
                maps.append(x)
        return x, maps

    def _has_stem_in_bands(self, x: Tensor) -> bool:
        """Whether nobody can tell: the stem's map at full resolution would be the network's largest."""
        norm: nn.Module = self.bn_in
        conv, first = self.conv_in, self.stages[0]
        if not runs_directly(x) or is_hooked(conv, norm, self.act_in, first):
            return False
        fixed = type(norm) is nn.Identity or (
            type(norm) is nn.BatchNorm2d and not norm.training and norm.running_mean is not None
        )
        pixelwise = type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1)
        return fixed and pixelwise and type(first.pool) is HalvingPool

    def _stem(self, x: Tensor) -> Tensor:
        return self.act_in(self.bn_in(self.conv_in(x)))

    def _pooled_bands(self, x: Tensor) -> Tensor:
        """The stem and the first pooling, some rows at a time."""
        height, pool = x.shape[2], self.stages[0].pool
        per_row = x.element_size() * x.shape[0] * max(x.shape[3], 1) * self.conv_in.out_channels
        rows = max(2, working_set_bytes(x.device) // max(4 * per_row, 1) // 2 * 2)
        total: Tensor | None = None
        for y in range(0, max(height - 1, 1), rows):
            # an odd last row goes with the band before it, which leaves it out
            band = pool(self._stem(x[:, :, y : y + rows + (y + rows == height - 1)]))
            if total is None:
                shape = (*band.shape[:2], max(height // 2, 1), band.shape[3])
                like = {"dtype": band.dtype, "device": band.device}
                total = torch.empty(shape, memory_format=memory_format_of(band), **like)
            total[:, :, y // 2 : y // 2 + band.shape[2]] = band
        return total if total is not None else pool(self._stem(x))


def _check(stem: str, layers: Sequence[int], kernels: Sequence[int], widths: Sequence[int]) -> None:
    check_stem(stem)
    if not len(layers) == len(kernels) == len(widths) or not widths:
        raise ValueError(
            f"layers, kernels and widths must have a number for each stage, got {layers}, {kernels} and {widths}"
        )
    if any(width < 16 or width % 16 for width in widths):
        raise ValueError(f"widths must be multiples of 16, a block's queries having a sixteenth of them, got {widths}")


default_cfgs = generate_default_cfgs(
    {f"{kind}san{depth}": imagenet_cfg("conv_in", "fc") for kind in ("", "pairwise_", "acmix_") for depth in LAYERS}
)


def _build(variant: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """``operator_args`` are options of the operator."""
    kinds: dict[str, OperatorFactory] = {"acmix": patchwise_acmix, "pairwise": PairwiseAttention2d}
    operator = kinds.get(variant.partition("_")[0], PatchwiseAttention2d)
    arguments = options.pop("operator_args", None) or {}
    settings: dict[str, Any] = {"layers": LAYERS[int(variant[-2:])], "operator": partial(operator, **arguments)}
    feature_cfg: dict[str, Any] = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}
    return build_model_with_cfg(SAN, variant, pretrained, feature_cfg=feature_cfg, **(settings | options))


san10 = registered(_build, "san10", "SAN-10, patchwise (published: 11.8 M, 1.9 G, top-1 77.1).")
san15 = registered(_build, "san15", "SAN-15, patchwise (published: 16.2 M, 2.6 G, top-1 78.0).")
san19 = registered(_build, "san19", "SAN-19, patchwise (published: 20.5 M, 3.3 G, top-1 78.2).")
pairwise_san10 = registered(
    _build, "pairwise_san10", "SAN-10, pairwise (published by its source: 10.5 M, 2.2 G, top-1 74.9)."
)
pairwise_san15 = registered(
    _build, "pairwise_san15", "SAN-15, pairwise (published by its source: 14.1 M, 3.0 G, top-1 76.6)."
)
pairwise_san19 = registered(
    _build, "pairwise_san19", "SAN-19, pairwise (published by its source: 17.6 M, 3.8 G, top-1 76.9)."
)
acmix_san10 = registered(_build, "acmix_san10", "SAN-ACmix-10 (published: 12.1 M, 1.9 G, top-1 77.6).")
acmix_san15 = registered(_build, "acmix_san15", "SAN-ACmix-15 (published: 16.6 M, 2.7 G, top-1 78.4).")
acmix_san19 = registered(_build, "acmix_san19", "SAN-ACmix-19 (published: 21.2 M, 3.4 G, top-1 78.7).")
