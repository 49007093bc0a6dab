"""A timm network with a feature pyramid: the backbone of every detector of this package."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm2d
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelP6P7

from convattn.layers._checks import check_choice

BatchNorms: TypeAlias = Literal["train", "eval", "frozen"]
MapNorms: TypeAlias = Literal["none", "layer"]
TopLevels: TypeAlias = Literal["pool", "C5", "P5"]

STAGES = 4


class FeatureNet(nn.Module):
    """The last feature maps of a network, each half the size of the one before, always ``[B, C, H, W]``.

    Args:
        backbone: a name of timm's registry (this package's among them), a network made with ``features_only=True``,
            or a classifier that publishes ``feature_info`` and ``forward_intermediates``, whose last layers are taken
            off.
        backbone_args: more arguments of ``timm.create_model``; only with a name.
        pretrained: take timm's pretrained weights; only with a name.
        levels: how many of the last maps.
        frozen_stages: so many of the last four stages that the network publishes are not trained, from the first on,
            and with them all before; 0: all are trained. 1 is the stem and conv2_x of a ResNet.
        batch_norms: ``"frozen"``: batch norms keep their statistics and their weights, ``"eval"``: their statistics
            alone; both need a pretrained network.
        map_norms: ``"layer"``: a layer norm over the channels of every map, as the authors of Swin do for detection:
            the maps of a transformer are sums that nothing has normalised; ``"none"``: the maps as they are.

    Raises:
        ValueError: an unknown name, a network without feature maps, maps that do not halve, too few of them.
        TypeError: a backbone that is no name and no module; arguments beside a module.

    Example:
        >>> import torch
        >>> net = FeatureNet("acmix_resnet14", backbone_args={"channels": (8, 16, 24, 32)}, levels=2)
        >>> [list(level.shape) for level in net(torch.zeros(1, 3, 33, 64))], net.strides
        ([[1, 96, 3, 4], [1, 128, 2, 2]], (16, 32))
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        backbone_args: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        levels: int = 4,
        frozen_stages: int = 0,
        batch_norms: BatchNorms = "train",
        map_norms: MapNorms = "none",
    ) -> None:
        super().__init__()
        check_choice("map_norms", map_norms, MapNorms)
        check_choice("batch_norms", batch_norms, BatchNorms)
        self.net = _as_feature_net(backbone, backbone_args, pretrained)
        name = backbone if isinstance(backbone, str) else type(backbone).__name__
        info: Any = self.net.feature_info
        channels, strides = list(info.channels()), list(info.reduction())
        if not 1 <= levels <= len(strides):
            raise ValueError(f"{name} has {len(strides)} feature maps (strides {strides}), but levels is {levels}")
        self.levels = levels
        self.channels, self.strides = tuple(channels[-levels:]), tuple(strides[-levels:])
        if any(2 * fine != coarse for fine, coarse in pairwise(self.strides)):
            raise ValueError(
                f"a feature pyramid needs maps of which each is half the size of the one before; those of {name} have "
                f"strides {strides} and the last {levels} are taken: set levels, or out_indices in backbone_args"
            )
        normed = self.channels if map_norms == "layer" else ()
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in normed)
        self.image_mean, self.image_std = _statistics(self.net, backbone_args or {})
        names = {module: name for name, module in self.net.named_modules()}
        norms = tuple(names[m] for m in names if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self._frozen = tuple(names[module] for module in first_stages(self.net, frozen_stages, name))
        self._frozen += norms if batch_norms == "frozen" else ()
        self._in_eval = self._frozen + (norms if batch_norms == "eval" else ())
        self._freeze()

    def replace(self, net: nn.Module) -> None:
        """Put another network, with modules of the same names and the same maps, in place; what is frozen stays so."""
        self.net = net
        self._freeze()

    def _freeze(self) -> None:
        for name in self._frozen:
            self.net.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> FeatureNet:
        """As torch's; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self._in_eval:
            self.net.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, C_in, H, W]`` -> the maps, the largest first."""
        maps = list(self.net(x))[-self.levels :]
        if str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        for level, channels in zip(maps, self.channels, strict=True):
            if level.dim() != 4 or level.shape[1] != channels:
                raise ValueError(f"the backbone announces maps of {self.channels} channels and gives {level.shape}")
        return [norm(level) for norm, level in zip(self.norms, maps, strict=True)] if self.norms else maps


class PyramidBackbone(nn.Module):
    """A network and the feature pyramid over its last maps (Lin et al., CVPR 2017).

    Under autocast the maps are given in float32: anchors and boxes are computed in their type.

    Args:
        features: the network.
        out_channels: of every level.
        top: the levels above: ``"pool"``: one more, every second pixel of the last (the R-CNNs'); ``"C5"``, ``"P5"``:
            two more by 3x3 convolutions of stride 2, the first of them from the network's last map or from the
            pyramid's (RetinaNet's).

    Raises:
        ValueError: an unknown ``top``.

    Example:
        >>> import torch
        >>> features = FeatureNet("acmix_resnet14", backbone_args={"channels": (8, 16, 24, 32)}, levels=3)
        >>> pyramid = PyramidBackbone(features, 16, top="C5")
        >>> {name: list(level.shape[2:]) for name, level in pyramid(torch.zeros(1, 3, 64, 96)).items()}
        {'0': [8, 12], '1': [4, 6], '2': [2, 3], 'p6': [1, 2], 'p7': [1, 1]}
        >>> pyramid.strides
        (8, 16, 32, 64, 128)
    """

    def __init__(self, features: FeatureNet, out_channels: int = 256, *, top: TopLevels = "pool") -> None:
        super().__init__()
        check_choice("top", top, TopLevels)
        self.features = features
        self.out_channels = out_channels
        self.names = tuple(str(level) for level in range(features.levels))
        above = (2,) if top == "pool" else (2, 4)
        self.strides = (*features.strides, *(features.strides[-1] * factor for factor in above))
        extra: ExtraFPNBlock = SubsampledLevel()
        if top != "pool":
            extra = LastLevelP6P7(features.channels[-1] if top == "C5" else out_channels, out_channels)
            extra.use_P5 = top == "P5"
        self.fpn = FeaturePyramidNetwork(list(features.channels), out_channels, extra_blocks=extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``[B, C_in, H, W]`` -> the levels by name, the largest first, each ``[B, out_channels, h, w]``."""
        levels = self.fpn(OrderedDict(zip(self.names, self.features(x), strict=True)))
        return OrderedDict((name, as_float(level)) for name, level in levels.items())


class SubsampledLevel(ExtraFPNBlock):
    """One more level: every second pixel of the last one, ``ceil(H/2) x ceil(W/2)``."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """The levels with one more."""
        # a slice in steps of two, from an exported file, has another size in OpenVINO where only its shape is asked for
        return [*results, F.max_pool2d(results[-1], kernel_size=1, stride=2)], [*names, "pool"]


def as_float(x: Tensor) -> Tensor:
    """Under autocast in float32, where a coordinate would lose pixels; else as it is."""
    device = x.device.type
    return x.float() if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) else x


def _as_feature_net(backbone: str | nn.Module, arguments: Mapping[str, Any] | None, pretrained: bool) -> nn.Module:
    if isinstance(backbone, str):
        return _create(backbone, dict(arguments or {}), pretrained)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be a name of timm's registry or a module, got {type(backbone).__name__}")
    if arguments or pretrained:
        raise TypeError("backbone_args and pretrained are for a backbone given by name, not for a module")
    info = getattr(backbone, "feature_info", None)
    if hasattr(info, "reduction"):
        return backbone
    if info and hasattr(backbone, "forward_intermediates"):
        return FeatureGetterNet(backbone, out_indices=tuple(range(len(info))))
    raise ValueError(
        f"{type(backbone).__name__} publishes no feature maps: give a network of timm.create_model(..., "
        "features_only=True), or one with feature_info and forward_intermediates"
    )


def _create(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    if not timm.is_model(name) and ":" not in name:
        close = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        raise ValueError(f"timm knows no network {name!r}" + (f"; close: {', '.join(close)}" if close else ""))
    arguments = {"features_only": True, **arguments}
    fixed_size = timm.is_model(name) and bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))
    if fixed_size and not {"strict_img_size", "img_size", "dynamic_img_size"} & arguments.keys():
        try:  # of timm's networks for one size, those with windows take any
            return timm.create_model(name, pretrained=pretrained, strict_img_size=False, **arguments)
        except TypeError:
            pass
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built for its feature maps: {error or type(error).__name__}") from error


def _statistics(net: nn.Module, arguments: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation that the network was trained with, one for each of its input channels."""
    cfg = getattr(net, "pretrained_cfg", None) or getattr(getattr(net, "model", None), "pretrained_cfg", None) or {}
    if not isinstance(cfg, Mapping):
        cfg = vars(cfg)
    mean = list(cfg.get("mean") or IMAGENET_DEFAULT_MEAN)
    std = list(cfg.get("std") or IMAGENET_DEFAULT_STD)
    count = arguments.get("in_chans") or getattr(getattr(net, "model", net), "in_chans", None) or len(mean)
    if count != len(mean):
        mean, std = [sum(mean) / len(mean)] * count, [sum(std) / len(std)] * count
    return mean, std


def first_stages(net: nn.Module, count: int, name: str) -> Iterator[nn.Module]:
    """The modules up to the end of a stage; timm's registration order is the order of execution."""
    info: Any = net.feature_info
    modules = [entry["module"] for entry in getattr(info, "info", info)]
    stages = modules[-STAGES:]
    if not 0 <= count <= len(stages):
        raise ValueError(f"frozen_stages must lie between 0 and {len(stages)} for {name}, got {count}")
    if count == 0:
        return
    root = net.model if isinstance(net, FeatureGetterNet) else net
    path = stages[count - 1].split(".")
    flat = "_".join(path)
    if flat in dict(root.named_children()):
        path = [flat]
    for part in path:
        children = dict(root.named_children())
        if part not in children:
            raise ValueError(
                f"frozen_stages: {name} has no module {stages[count - 1]!r}; freeze its parameters yourself"
            )
        for child, module in children.items():
            if child == part:
                root = module
                break
            yield module
    yield root
