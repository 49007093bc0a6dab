"""The static branches of X-volution for inference: convolutions and the lines after them as one convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.reparameterized import _exact, _parameter, _seconds, batch_norm_line
from convattn.ops import Neighborhood, offset_convolution
from convattn.ops.offset_convolution import blocks_of_outputs, skips_zeros

StaticForm: TypeAlias = Literal["separate", "dense", "gathered"]
StaticFormChoice: TypeAlias = Literal["auto", "separate", "dense", "gathered"]

VALUE_MOVED = 32
"""How many multiply-adds the copy of one value to its place counts for in ``"gathered"``."""


@dataclass(frozen=True)
class StaticBranch:
    """A convolution and the line that follows it, in float64.

    Args:
        convolution: of any configuration.
        gain: ``[C]``.
        shift: ``[C]``, the convolution's own bias not in it.
    """

    convolution: nn.Conv2d
    gain: Tensor
    shift: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether weight and bias, as they are now, say all about it."""
        return type(self.convolution) is nn.Conv2d and not is_hooked(self.convolution)

    @property
    def is_centred(self) -> bool:
        """Whether it is a sum over offsets around the output's pixel, with zeros beyond the border."""
        conv = self.convolution
        centred = tuple(d * (k // 2) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
        odd = all(k % 2 for k in conv.kernel_size)
        padded = centred if conv.padding == "same" else (0, 0) if conv.padding == "valid" else conv.padding
        return self.is_plain and odd and conv.groups == 1 and conv.padding_mode == "zeros" and padded == centred

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Of the taps, row by row."""
        (kh, kw), (dh, dw) = self.convolution.kernel_size, self.convolution.dilation
        return [(dh * (m - kh // 2), dw * (n - kw // 2)) for m in range(kh) for n in range(kw)]

    def weight(self) -> Tensor:
        """The kernel, the gain in it, float64."""
        return _exact(self.convolution.weight) * self.gain[:, None, None, None]

    def bias(self) -> Tensor:
        """What is added to every channel, float64."""
        bias = self.convolution.bias
        return self.shift if bias is None else self.shift + _exact(bias) * self.gain


def static_branch(convolution: nn.Module, norm: nn.Module) -> StaticBranch:
    """A convolution and the batch norm after it, or none where that is an ``nn.Identity``.

    Raises:
        TypeError: no convolution.
        ValueError: a batch norm without running statistics.
    """
    if not isinstance(convolution, nn.Conv2d):
        raise TypeError(f"reparameterize folds branches that are nn.Conv2d, got {convolution}")
    return StaticBranch(convolution, *line(norm, convolution.weight))


def line(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift of a batch norm in eval mode; 1 and 0 of an ``nn.Identity``."""
    if type(norm) is nn.Identity:
        one = torch.ones_like(_exact(like[:, 0, 0, 0]))
        return one, torch.zeros_like(one)
    return batch_norm_line(norm)


def static_multiply_adds(branches: Sequence[StaticBranch]) -> dict[StaticForm, int]:
    """What the static branches cost for one output pixel, in the forms that are exact for them.

    Example:
        >>> from convattn.layers.xvolution import MultiConvolution
        >>> layer = MultiConvolution(1, 1)
        >>> static_multiply_adds(layer.static_branches())
        {'separate': 34, 'dense': 81, 'gathered': 33}
    """
    counted: dict[StaticForm, int] = {"separate": sum(branch.convolution.weight.numel() for branch in branches)}
    same = len({branch.convolution.stride for branch in branches}) == 1
    if len(branches) > 1 and same and all(branch.is_centred for branch in branches):
        pairs = branches[0].convolution.in_channels * branches[0].convolution.out_channels
        (kh, kw), _ = _common_window(branches)
        counted["dense"] = kh * kw * pairs
        counted["gathered"] = len(_union(branches)) * pairs
    return counted


def fold_static(
    branches: Sequence[StaticBranch],
    form: StaticFormChoice,
    example: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> StaticConvolution:
    """The static branches as one, in a form: ``"auto"`` is the cheapest, counted or with an ``example`` timed.

    Args:
        branches: one or more.
        form: see :class:`StaticConvolution`.
        example: what the forms are timed on.
        size: H and W of the map that is counted for: see :func:`map_multiply_adds`.

    Raises:
        ValueError: an unknown form, or one that is not exact for these branches.
    """
    if form not in get_args(StaticFormChoice):
        raise ValueError(f"form must be one of {get_args(StaticFormChoice)}, got {form!r}")
    counted = static_multiply_adds(branches)
    if form != "auto":
        if form not in counted:
            raise ValueError(
                f"form={form!r} merges convolutions centred on the output's pixel, of one group and zeros beyond the "
                f"border; {' and '.join(map(repr, counted))} would do"
            )
        return StaticConvolution(branches, form)
    if example is not None and len(counted) > 1:
        # a form of twice the products would only be built to lose
        forms = [name for name, count in counted.items() if count < 2 * min(counted.values())]
        candidates = [StaticConvolution(branches, name) for name in forms]
        times = [_seconds(candidate, example) for candidate in candidates]
        return candidates[times.index(min(times))]
    costs = map_multiply_adds(branches, size)
    return StaticConvolution(branches, min(costs, key=lambda name: costs[name]))


def map_multiply_adds(branches: Sequence[StaticBranch], size: tuple[int, int] | None = None) -> dict[StaticForm, float]:
    """What the static branches cost for one output pixel of a map: what ``"auto"`` compares.

    :func:`static_multiply_adds`, and :data:`VALUE_MOVED` for each value that ``"gathered"`` copies. On a map of known
    size, ``"gathered"`` is spared the products with zeros beyond the border, if its kernel here skips them
    (:func:`convattn.ops.offset_convolution.skips_zeros`); convolutions of torch compute them.

    Example:
        >>> from convattn.layers.xvolution import MultiConvolution
        >>> branches = MultiConvolution(64, 64).static_branches()
        >>> {form: round(cost / 64**2, 1) for form, cost in map_multiply_adds(branches).items()}
        {'separate': 34.0, 'dense': 81.0, 'gathered': 49.5}
    """
    costs: dict[StaticForm, float] = dict(static_multiply_adds(branches))
    if "gathered" in costs:
        first = branches[0].convolution
        copies = VALUE_MOVED * len(_union(branches)) * first.in_channels
        skipping = size is not None and skips_zeros(first.weight)
        costs["gathered"] = (costs["gathered"] + copies) * (_share_on_map(branches, size) if size and skipping else 1)
    return costs


def _share_on_map(branches: Sequence[StaticBranch], size: tuple[int, int]) -> float:
    """How many of an output's taps lie on the map, of all, in the mean over the map."""
    along = []
    for axis, (length, stride) in enumerate(zip(size, branches[0].convolution.stride, strict=True)):
        centres = range(0, length, stride)
        along.append({d: sum(0 <= p + d < length for p in centres) / len(centres) for d in _reaches(branches, axis)})
    offsets = _union(branches)
    return sum(along[0][dy] * along[1][dx] for dy, dx in offsets) / len(offsets)


def _reaches(branches: Sequence[StaticBranch], axis: int) -> set[int]:
    return {offset[axis] for offset in _union(branches)}


class StaticConvolution(nn.Module):
    """The static branches for inference, their biases one.

    Args:
        branches: one or more, of one stride.
        form: see :func:`fold_static`.
    """

    def __init__(self, branches: Sequence[StaticBranch], form: StaticForm) -> None:
        super().__init__()
        self.form, self.taps = form, _tap_count(branches)
        self.counted = static_multiply_adds(branches)[form]
        bias = torch.stack([branch.bias() for branch in branches]).sum(0)
        self.convolutions: nn.ModuleList | None = None
        self.gathered: GatheredConvolution | None = None
        first = branches[0].convolution
        if form == "gathered":
            offsets, weight = merged_taps(branches)
            self.gathered = GatheredConvolution(weight, bias, offsets, first)
        elif form == "dense":
            self.convolutions = nn.ModuleList([_dense(branches, bias)])
        else:
            self.convolutions = nn.ModuleList(_separate(branches, bias))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        if self.gathered is not None:
            return cast(Tensor, self.gathered(x))
        first, *others = cast(nn.ModuleList, self.convolutions)
        out: Tensor = first(x)
        for conv in others:
            out = out + conv(x)
        return out

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        if self.gathered is not None:
            self.gathered.multiply(gain, shift)
            return
        parts = cast(nn.ModuleList, self.convolutions)
        for place, part in enumerate(parts):
            added = shift if place == 0 else torch.zeros_like(shift)
            if isinstance(part, FollowedConvolution):
                part.multiply(gain, added)
            else:
                branch = StaticBranch(cast(nn.Conv2d, part), gain, added)
                parts[place] = copy_with(branch, branch.bias() if place == 0 else None)

    def a_bias(self) -> nn.Parameter:
        """A parameter ``[C]``."""
        holder = cast(nn.ModuleList, self.convolutions)[0] if self.gathered is None else self.gathered
        return cast(nn.Parameter, holder.bias)

    def extra_repr(self) -> str:
        """The form and its cost."""
        return f"form={self.form!r}, taps={self.taps}, multiply_adds={self.counted} for an output pixel"


class GatheredConvolution(nn.Module):
    """One convolution over any offsets (:func:`convattn.ops.offset_convolution`).

    Args:
        weight: ``[C, C_in, D]``.
        bias: ``[C]``.
        offsets: D of them.
        like: the convolution whose stride, dtype and device it has.
    """

    def __init__(self, weight: Tensor, bias: Tensor, offsets: Sequence[tuple[int, int]], like: nn.Conv2d) -> None:
        super().__init__()
        self.neighborhood = Neighborhood(tuple(offsets), (like.stride[0], like.stride[1]), "zeros")
        self.weight = _parameter(blocks_of_outputs(weight.permute(2, 1, 0)), like.weight)
        self.bias = _parameter(bias, like.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        return offset_convolution(x, self.weight, self.neighborhood, self.bias)

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        by_block = gain.unflatten(0, (len(self.weight), 1, -1))
        self.weight = _parameter(_exact(self.weight) * by_block, self.weight)
        self.bias = _parameter(_exact(self.bias) * gain + shift, self.weight)

    def extra_repr(self) -> str:
        """What it holds."""
        taps, stride = len(self.neighborhood), self.neighborhood.stride
        return f"offsets={taps}, weight={list(self.weight.shape)}, stride={stride}"


class FollowedConvolution(nn.Module):
    """A convolution that is more than its weight and bias, with a line after it.

    Args:
        branch: the convolution and the line.
    """

    def __init__(self, branch: StaticBranch, bias: Tensor) -> None:
        super().__init__()
        self.convolution = branch.convolution
        like = branch.convolution.weight
        self.gain, self.bias = _parameter(branch.gain, like), _parameter(bias, like)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        return apply_line(self.convolution(x), self.gain, self.bias)

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        self.bias = _parameter(_exact(self.bias) * gain + shift, self.bias)
        self.gain = _parameter(_exact(self.gain) * gain, self.gain)


def merged_taps(branches: Sequence[StaticBranch]) -> tuple[list[tuple[int, int]], Tensor]:
    """The offsets of all branches, each once, and the sum of the kernels on them, ``[C, C_in, D]`` in float64."""
    offsets = _union(branches)
    places = {offset: place for place, offset in enumerate(offsets)}
    first = branches[0].weight()
    merged = first.new_zeros(*first.shape[:2], len(offsets))
    for branch in branches:
        index = torch.tensor([places[offset] for offset in branch.offsets], device=merged.device)
        merged.index_add_(2, index, branch.weight().flatten(2))
    return offsets, merged


def apply_line(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """``gain * x + shift`` for every channel, in the map's dtype."""
    return torch.addcmul(shift.to(x.dtype)[:, None, None], x, gain.to(x.dtype)[:, None, None])


def _union(branches: Sequence[StaticBranch]) -> list[tuple[int, int]]:
    return sorted({offset for branch in branches for offset in branch.offsets})


def _tap_count(branches: Sequence[StaticBranch]) -> int:
    return sum(len(branch.offsets) for branch in branches) if len(branches) == 1 else len(_union(branches))


def _common_window(branches: Sequence[StaticBranch]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel size and dilation of the smallest window that holds all taps."""
    along = [[offset[axis] for offset in _union(branches)] for axis in (0, 1)]
    steps = [gcd(*places) or 1 for places in along]
    height, width = (2 * max(places) // step + 1 for places, step in zip(along, steps, strict=True))
    return (height, width), (steps[0], steps[1])


def _dense(branches: Sequence[StaticBranch], bias: Tensor) -> nn.Conv2d:
    first, (kernel, dilation) = branches[0].convolution, _common_window(branches)
    offsets, taps = merged_taps(branches)
    weight = taps.new_zeros(*taps.shape[:2], *kernel)
    for place, (dy, dx) in enumerate(offsets):
        weight[:, :, dy // dilation[0] + kernel[0] // 2, dx // dilation[1] + kernel[1] // 2] = taps[:, :, place]
    padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
    conv = nn.Conv2d(
        first.in_channels,
        first.out_channels,
        kernel,
        cast("tuple[int, int]", first.stride),
        padding,
        dilation,
        device="meta",
    )
    conv.weight, conv.bias = _parameter(weight, first.weight), _parameter(bias, first.weight)
    return conv


def _separate(branches: Sequence[StaticBranch], bias: Tensor) -> list[nn.Module]:
    """The convolutions one by one, the bias of all in the first."""
    convolutions: list[nn.Module] = []
    for place, branch in enumerate(branches):
        if branch.is_plain:
            convolutions.append(copy_with(branch, bias if place == 0 else None))
        else:  # its own bias, whatever makes it, stays in it
            own = torch.zeros_like(bias) if branch.convolution.bias is None else branch.bias() - branch.shift
            convolutions.append(FollowedConvolution(branch, (bias if place == 0 else torch.zeros_like(bias)) - own))
    return convolutions


def copy_with(branch: StaticBranch, bias: Tensor | None) -> nn.Conv2d:
    """A plain convolution with the branch's kernel, the gain in it, and another bias."""
    conv = branch.convolution
    copied = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        cast("tuple[int, int]", conv.padding),
        cast("tuple[int, int]", conv.dilation),
        conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    copied.weight = _parameter(branch.weight(), conv.weight)
    if bias is not None:
        copied.bias = _parameter(bias, conv.weight)
    return copied
