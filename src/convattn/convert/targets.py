"""What a convolution is turned into: whether it can be, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import nn

from convattn.convert.adjusted import AdjustedOperator
from convattn.convert.grouping import similar_outputs
from convattn.layers import ACmix
from convattn.layers._checks import check_choice, is_hooked, nearest_heads
from convattn.layers.local_attention import PositionKind
from convattn.layers.xvolution import XVolution
from convattn.models.approximation import fitting_heads, write_convolution
from convattn.models.resnet import OperatorFactory, in_place_of
from convattn.ops.neighborhood import same_padding

ToKind: TypeAlias = Literal["acmix", "xvolution"]
Maker: TypeAlias = "Callable[[nn.Conv2d], nn.Module] | OperatorFactory"
Grouping: TypeAlias = Literal["order", "similar"]

IMAGE_CHANNELS = 4
"""A convolution of so few channels reads the image itself."""


@dataclass(frozen=True)
class Replacement:
    """What replaces a convolution.

    Args:
        module: the operator.
        words: what it is.
        relative_error: see :class:`convattn.convert.ConvertedLayer`.
    """

    module: nn.Module
    words: str
    relative_error: float | None = None


class Target(Protocol):
    """A kind of operator that convolutions are turned into."""

    def refusal(self, conv: nn.Conv2d, *, named: bool) -> str | None:
        """Why a convolution stays, or None; ``named``: the user asked for it, so cost alone is no reason."""

    def build(self, conv: nn.Conv2d) -> Replacement:
        """What replaces it."""


def target_of(to: Any, operator_args: Mapping[str, Any] | None) -> Target:
    """The target that ``to`` means.

    Raises:
        ValueError: an unknown name.
        TypeError: no name and not callable, or options that the target does not have.
    """
    options = dict(operator_args or {})
    if to == "acmix":
        _check_options("acmix", options, [option.name for option in fields(ToACmix)])
        return ToACmix(**options)
    if to == "xvolution":
        return ToXVolution(options)
    if isinstance(to, str):
        raise ValueError(f"to must be one of {', '.join(map(repr, get_args(ToKind)))} or a callable, got {to!r}")
    if not callable(to):
        raise TypeError(f"to must be a name or a callable that makes an operator, got {to!r}")
    if options:
        raise TypeError("operator_args are for to='acmix' and to='xvolution': give a callable its options yourself")
    return ToMade(to)


def _check_options(to: str, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"to={to!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")


def general_refusal(conv: nn.Module, *, named: bool) -> str | None:
    """Why no operator can take the place of a convolution, or None."""
    if isinstance(conv, nn.ConvTranspose2d):
        return "a transposed convolution: an operator does not enlarge a map"
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.weight, nn.parameter.UninitializedParameter):
        return "its parameters are not made yet: run the network once"
    if any(size % 2 == 0 for size in conv.kernel_size) and not named:
        return "an even kernel, which has no pixel at its centre"
    if is_hooked(conv):
        return "it has hooks, which an operator would lose"
    if conv.in_channels <= IMAGE_CHANNELS and not named:
        return "it reads the image itself: name it in where to replace it"
    return None


def _own_forward(conv: nn.Conv2d) -> str | None:
    kind = type(conv)
    plain = (nn.Conv2d.forward, nn.Conv2d._conv_forward)
    if (kind.forward, kind._conv_forward) == plain and "weight" in conv._parameters:
        return None
    return f"a {kind.__name__} computes something else than nn.Conv2d does"


def _keeps_size(conv: nn.Conv2d) -> str | None:
    same = same_padding(conv.kernel_size, conv.dilation)
    if any(size % 2 == 0 for size in conv.kernel_size):
        return "an even kernel, which has no pixel at its centre: an ACmix needs one"
    if conv.padding_mode != "zeros":
        return f"its border is {conv.padding_mode!r}: an ACmix's is zeros"
    if conv.padding not in ("same", same):
        return f"its padding is {conv.padding}: an ACmix keeps the size of the map, as {same} would"
    return None


@dataclass(frozen=True)
class ToACmix:
    """ACmix that starts as the best approximation of the convolution.

    Args:
        num_heads: of every operator; where it does not divide the channels, the nearest that does. ``"fit"``: as many
            as lose least of the kernel, see :func:`convattn.models.approximation.fitting_heads`.
        grouping: which outputs share a head channel: ``"order"``: neighbours, so that a plain ACmix is in the
            network; ``"similar"``: those that read the input alike, put back into order afterwards.
        attention_kernel_size: the attention's window.
        position: the attention's position term.

    Raises:
        ValueError: an unknown grouping or number of heads.
    """

    num_heads: int | Literal["fit"] = 4
    grouping: Grouping = "order"
    attention_kernel_size: int | tuple[int, int] = 7
    position: PositionKind | None = "linear"

    def __post_init__(self) -> None:
        """Check the options that the operator does not."""
        check_choice("grouping", self.grouping, Grouping)
        if self.num_heads != "fit" and (not isinstance(self.num_heads, int) or self.num_heads < 1):
            raise ValueError(f"num_heads must be 'fit' or at least 1, got {self.num_heads!r}")

    def refusal(self, conv: nn.Conv2d, *, named: bool) -> str | None:
        """See :class:`Target`."""
        if conv.groups == conv.in_channels and conv.groups > 1 and not named:
            return "depthwise: an ACmix mixes all channels and costs a multiple; name it in where to replace it"
        return _own_forward(conv) or _keeps_size(conv)

    def build(self, conv: nn.Conv2d) -> Replacement:
        """See :class:`Target`."""
        heads = self._heads(conv)
        make = partial(
            ACmix,
            kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
            attention_kernel_size=self.attention_kernel_size,
            num_heads=heads,
            position=self.position,
        )
        layer = in_place_of(conv, make)
        order = similar_outputs(conv, heads) if self.grouping == "similar" and conv.groups == 1 and heads > 1 else None
        words = f"ACmix, {heads} heads"
        if conv.weight.is_meta:
            return Replacement(_adjusted(layer, conv, order), words)
        return Replacement(_adjusted(layer, conv, order), words, write_convolution(layer, conv, order))

    def _heads(self, conv: nn.Conv2d) -> int:
        if self.num_heads == "fit":
            return fitting_heads(conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]))
        return nearest_heads(conv.out_channels, self.num_heads)


def _adjusted(layer: ACmix, conv: nn.Conv2d, order: torch.Tensor | None) -> nn.Module:
    if order is None and conv.bias is None:
        return layer
    return AdjustedOperator(layer, None if order is None else order.argsort().to(conv.weight.device), conv.bias)


@dataclass(frozen=True)
class ToXVolution:
    """X-volution that computes exactly what the convolution does, and has an attention branch to learn.

    Args:
        options: of :meth:`convattn.XVolution.around`.

    Raises:
        TypeError: an option that it does not have.
    """

    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names of the options."""
        known = [name for name in inspect.signature(XVolution.around).parameters if name != "conv"]
        _check_options("xvolution", self.options, known)
        if isinstance(self.options.get("attention"), nn.Module):
            raise TypeError("one attention module cannot stand in every operator: give a function that makes one")

    def refusal(self, conv: nn.Conv2d, *, named: bool) -> str | None:
        """See :class:`Target`."""
        return None

    def build(self, conv: nn.Conv2d) -> Replacement:
        """See :class:`Target`."""
        layer = XVolution.around(conv, **self.options)
        return Replacement(layer, f"XVolution, {type(layer.attention).__name__}", 0.0)


@dataclass(frozen=True)
class ToMade:
    """What a callable makes, with fresh weights.

    Args:
        make: called with the convolution; or, where it has parameters ``in_channels`` and ``out_channels``, as
            :class:`convattn.models.resnet.OperatorFactory` is.
    """

    make: Callable[..., nn.Module]

    def refusal(self, conv: nn.Conv2d, *, named: bool) -> str | None:
        """See :class:`Target`."""
        return None

    def build(self, conv: nn.Conv2d) -> Replacement:
        """See :class:`Target`."""
        module = self._make(conv)
        if not isinstance(module, nn.Module):
            raise TypeError(f"the callable must return a module, got {type(module).__name__}")
        return Replacement(module, type(module).__name__)

    def _make(self, conv: nn.Conv2d) -> nn.Module:
        if not {"in_channels", "out_channels"} <= set(inspect.signature(self.make).parameters):
            return self.make(conv)
        return in_place_of(conv, self.make)
