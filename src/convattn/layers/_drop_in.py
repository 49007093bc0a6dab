"""What every operator in a convolution's place shares: its channels, and what it does with its input."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeAlias, TypeVar, Unpack

from torch import Tensor, nn
from torch.fx import Proxy

from convattn.layers._base import Geometry, StridedLayer
from convattn.layers._checks import check_conv2d_words, check_counts, check_division, check_input, check_odd
from convattn.layers.path_mix import no_weight_decay
from convattn.ops.neighborhood import IntPair, same_padding

Layer = TypeVar("Layer", bound=nn.Module)
Forward = TypeVar("Forward", bound=Callable[..., Any])
Padding: TypeAlias = IntPair | Literal["same"] | None


def traced_as_one(forward: Forward) -> Forward:
    """A ``forward`` that is one node to whoever traces a network symbolically, as that of torch's layers is.

    That is ``torch.fx`` and the feature extractors of torchvision and timm: what such a layer computes depends on its
    input, whose shape they do not know.
    """

    @wraps(forward)
    def run(self: nn.Module, x: Any, *others: Any) -> Any:
        if isinstance(x, Proxy):
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *others), {})
        return forward(self, x, *others)

    made: Any = run
    # a code object for each: torch.compile counts by code object how often it may compile again
    made.__code__ = made.__code__.replace(co_name=forward.__qualname__)
    return made


def takes_maps(forward: Callable[[Layer, Tensor], Tensor]) -> Callable[[Layer, Tensor], Tensor]:
    """A ``forward`` over ``[B, C, H, W]`` that takes ``[C, H, W]`` too, checks the channels and is traced as one.

    Raises:
        ValueError: an input of another shape.
    """

    @wraps(forward)
    def checked(self: Layer, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return checked(self, x.unsqueeze(0)).squeeze(0)
        check_input(x, self.in_channels)  # type: ignore[arg-type]
        return forward(self, x)

    return traced_as_one(checked)


class DropIn(StridedLayer):
    """An operator in a convolution's place, from ``[B, C_in, H, W]``; its ``forward`` is one that :func:`takes_maps`.

    Args:
        in_channels: C_in, at least 1.
        out_channels: C, at least 1.
        num_heads: must divide C.
        **geometry: stride, dilation, device and dtype.

    Raises:
        ValueError: other channels, strides or dilations.
    """

    def __init__(self, in_channels: int, out_channels: int, num_heads: int = 1, **geometry: Unpack[Geometry]) -> None:
        super().__init__(**geometry)
        check_counts(in_channels=in_channels, out_channels=out_channels)
        check_division(out_channels, num_heads)
        self.in_channels, self.out_channels = in_channels, out_channels

    def _set_conv2d_words(self, kernel_size: IntPair, padding: Padding, groups: int, padding_mode: str) -> None:
        """Set the attributes that ``nn.Conv2d`` has under these names.

        Raises:
            ValueError: an even kernel, or what an operator cannot be told, see :func:`check_conv2d_words`.
        """
        self.kernel_size = check_odd(kernel_size)
        self.padding = same_padding(self.kernel_size, self.dilation)
        check_conv2d_words(padding, self.padding, groups, padding_mode)
        self.groups, self.padding_mode = groups, padding_mode

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: α and β (timm's convention)."""
        return no_weight_decay(self)
