"""The static branches of X-volution for inference: convolutions and the lines after them as one convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from operator import or_
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.folding import (
    batch_norm_line,
    convolution_like,
    exact,
    make_form,
    parameter_like,
    scale_outputs,
    scaled,
)
from convattn.layers.offset_convolution import OffsetConvolution
from convattn.ops import Neighborhood
from convattn.ops.dynamic_conv import spread_taps, taps
from convattn.ops.neighborhood import same_padding
from convattn.ops.offset_convolution import products_on

StaticForm: TypeAlias = Literal["separate", "dense", "gathered"]
StaticFormChoice: TypeAlias = Literal["auto", "separate", "dense", "gathered"]
STATIC_FORMS: tuple[StaticForm, ...] = get_args(StaticForm)

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
        centred = same_padding(conv.kernel_size, conv.dilation)
        odd = all(k % 2 for k in conv.kernel_size)
        padded = centred if conv.padding == "same" else (0, 0) if conv.padding == "valid" else conv.padding
        return self.is_plain and odd and conv.groups == 1 and conv.padding_mode == "zeros" and padded == centred

    @property
    def stride(self) -> tuple[int, int]:
        """Of the convolution."""
        return cast("tuple[int, int]", self.convolution.stride)

    @property
    def dilation(self) -> tuple[int, int]:
        """Of the convolution."""
        return cast("tuple[int, int]", self.convolution.dilation)

    @property
    def neighborhood(self) -> Neighborhood:
        """The taps, if it is centred."""
        size = cast("tuple[int, int]", self.convolution.kernel_size)
        return Neighborhood.window(size, dilation=self.dilation, stride=self.stride, border="zeros")

    def weight(self) -> Tensor:
        """The kernel, the gain in it, float64."""
        return exact(self.convolution.weight) * self.gain[:, None, None, None]

    def bias(self) -> Tensor:
        """What is added to every channel, float64."""
        bias = self.convolution.bias
        return self.shift if bias is None else self.shift + exact(bias) * self.gain


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
        one = torch.ones_like(exact(like[:, 0, 0, 0]))
        return one, torch.zeros_like(one)
    return batch_norm_line(norm)


def static_multiply_adds(branches: Sequence[StaticBranch]) -> dict[StaticForm, int]:
    """What the static branches cost for one output pixel, in the forms that are exact for them.

    Example:
        >>> from convattn import MultiConvolution
        >>> layer = MultiConvolution(1, 1)
        >>> static_multiply_adds(layer.static_branches())
        {'separate': 34, 'dense': 81, 'gathered': 33}
    """
    counted: dict[StaticForm, int] = {"separate": sum(branch.convolution.weight.numel() for branch in branches)}
    same = len({branch.stride for branch in branches}) == 1
    if len(branches) > 1 and same and all(branch.is_centred for branch in branches):
        nbhd, pairs = _merged(branches), branches[0].convolution.in_channels * branches[0].convolution.out_channels
        (kh, kw), _ = smallest_window(nbhd)
        counted["dense"], counted["gathered"] = kh * kw * pairs, len(nbhd) * pairs
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
        ValueError: a form that is not exact for these branches.
    """
    counted = static_multiply_adds(branches)
    if form != "auto" and form not in counted:
        raise ValueError(
            f"form={form!r} merges convolutions centred on the output's pixel, of one group and zeros beyond the "
            f"border; {' and '.join(map(repr, counted))} would do"
        )
    costs = map_multiply_adds(branches, size)
    return make_form(form, lambda name: StaticConvolution(branches, name), counted, costs=costs, example=example)


def map_multiply_adds(branches: Sequence[StaticBranch], size: tuple[int, int] | None = None) -> dict[StaticForm, float]:
    """What the static branches cost for one output pixel of a map: what ``"auto"`` compares.

    :func:`static_multiply_adds`, and :data:`VALUE_MOVED` for each value that ``"gathered"`` copies. On a map of known
    size, ``"gathered"`` costs what :func:`convattn.ops.offset_convolution.products_on` says that it computes there.

    Example:
        >>> from convattn import MultiConvolution
        >>> branches = MultiConvolution(64, 64).static_branches()
        >>> {form: round(cost / 64**2, 1) for form, cost in map_multiply_adds(branches).items()}
        {'separate': 34.0, 'dense': 81.0, 'gathered': 49.5}
    """
    costs: dict[StaticForm, float] = dict(static_multiply_adds(branches))
    if "gathered" in costs:
        first, nbhd = branches[0].convolution, _merged(branches)
        computed = len(nbhd) if size is None else products_on(size, nbhd, first.weight)
        costs["gathered"] = computed * first.in_channels * (first.out_channels + VALUE_MOVED)
    return costs


class StaticConvolution(nn.Module):
    """The static branches for inference, their biases one.

    Args:
        branches: one or more, of one stride.
        form: see :func:`fold_static`.
    """

    def __init__(self, branches: Sequence[StaticBranch], form: StaticForm) -> None:
        super().__init__()
        counted = static_multiply_adds(branches)
        self.form, self.counted = form, counted[form]
        kernels = (branch.convolution.weight[0, 0].numel() for branch in branches)
        self.taps = len(_merged(branches)) if "gathered" in counted else sum(kernels)
        bias = torch.stack([branch.bias() for branch in branches]).sum(0)
        self.convolutions: nn.ModuleList | None = None
        self.gathered: OffsetConvolution | None = None
        if form == "gathered":
            nbhd, weight = merged_taps(branches)
            self.gathered = OffsetConvolution(weight, bias, nbhd, like=branches[0].convolution.weight)
        elif form == "dense":
            self.convolutions = nn.ModuleList([_dense(branches, bias)])
        else:
            self.convolutions = nn.ModuleList(_separate(branches, bias))

    @property
    def parts(self) -> list[nn.Module]:
        """What is added up; the bias of all is in the first."""
        return list(cast(nn.ModuleList, self.convolutions)) if self.gathered is None else [self.gathered]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        first, *others = self.parts
        out: Tensor = first(x)
        for conv in others:
            out = out + conv(x)
        return out

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        for place, part in enumerate(self.parts):
            scale_outputs(part, gain, shift if place == 0 else None)

    def a_bias(self) -> nn.Parameter:
        """A parameter ``[C]``."""
        return cast(nn.Parameter, self.parts[0].bias)

    def extra_repr(self) -> str:
        """The form and its cost."""
        return f"form={self.form!r}, taps={self.taps}, multiply_adds={self.counted} for an output pixel"


class FollowedConvolution(nn.Module):
    """A convolution that is more than its weight and bias, with a line after it.

    Args:
        branch: the convolution and the line.
        bias: ``[C]``, what the line adds.
    """

    def __init__(self, branch: StaticBranch, bias: Tensor) -> None:
        super().__init__()
        self.convolution = branch.convolution
        like = branch.convolution.weight
        self.gain, self.bias = parameter_like(branch.gain, like), parameter_like(bias, like)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        out = self.convolution(x)
        gain, bias = (value.to(out.dtype)[:, None, None] for value in (self.gain, self.bias))
        return torch.addcmul(bias, out, gain)

    @torch.no_grad()
    def multiply(self, gain: Tensor, shift: Tensor | None = None) -> None:
        """Multiply the outputs by ``[C]``, then add ``[C]``."""
        self.gain, self.bias = scaled(self.gain, gain), scaled(self.bias, gain, shift)


def merged_taps(branches: Sequence[StaticBranch]) -> tuple[Neighborhood, Tensor]:
    """The offsets of all branches, each once, and the sum of the kernels on them, ``[C, C_in, D]`` in float64."""
    nbhd = _merged(branches)
    kernels = [taps(branch.weight(), nbhd, dilation=branch.dilation) for branch in branches]
    return nbhd, torch.stack(kernels).sum(0)[0, ..., 0, 0]


def _merged(branches: Sequence[StaticBranch]) -> Neighborhood:
    return reduce(or_, (branch.neighborhood for branch in branches))


def smallest_window(nbhd: Neighborhood) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel size and dilation of the smallest centred window that holds all taps.

    Example:
        >>> smallest_window(Neighborhood(((0, 0), (-6, 2))))
        ((3, 3), (6, 2))
    """
    along = [[offset[axis] for offset in nbhd.offsets] for axis in (0, 1)]
    steps = [gcd(*places) or 1 for places in along]
    height, width = (2 * max(map(abs, places)) // step + 1 for places, step in zip(along, steps, strict=True))
    return (height, width), (steps[0], steps[1])


def _dense(branches: Sequence[StaticBranch], bias: Tensor) -> nn.Conv2d:
    nbhd, merged = merged_taps(branches)
    like, (kernel, dilation) = branches[0].convolution.weight, smallest_window(nbhd)
    window = Neighborhood.window(kernel, dilation=dilation)
    weight = spread_taps(merged[..., None, None], nbhd, window)[..., 0, 0].unflatten(2, kernel)
    size, padding = (like.shape[1], like.shape[0]), same_padding(kernel, dilation)
    geometry = nn.Conv2d(*size, kernel, branches[0].stride, padding, dilation, device="meta")
    return convolution_like(geometry, weight, bias, like)


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
    return convolution_like(branch.convolution, branch.weight(), bias, branch.convolution.weight)
