r"""ACmix for inference: everything linear in it folded together, in whichever exact form is cheapest.

The fully connected layer, the grouped convolution and β are one grouped convolution from the maps of a head channel,
3N for most attention paths, to its N outputs (``"grouped"``). With the projection before it, it is one convolution of
the input (``"dense"``). A batch norm that follows scales and shifts the outputs of both paths, so it folds too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.folding import (
    PASS_SAVED,
    batch_norm_line,
    check_folds,
    convolution_like,
    exact,
    is_pointwise,
    make_form,
    parameter_like,
    scaled,
)
from convattn.layers.local_attention import LinearPosition, LocalAttention
from convattn.layers.shift_convolution import ShiftConvolution
from convattn.ops import Neighborhood, group_convolution
from convattn.ops._prepared import Prepared
from convattn.ops._recording import map_size
from convattn.ops.acmix import Activation, apply, operator
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.neighborhood import same_padding, strided_size

Form: TypeAlias = Literal["grouped", "dense", "unfused"]
FormChoice: TypeAlias = Literal["auto", "grouped", "dense", "unfused"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Parts:
    """What an ACmix is made of.

    Args:
        projection: stage I.
        attention: the attention path.
        convolution: the convolution path.
        alpha: the factor of the attention path, ``[1]``.
        beta: the factor of the convolution path, ``[1]``.

    Raises:
        TypeError: a projection or convolution path put in by hand, of which nothing is known.
    """

    projection: nn.Conv2d
    attention: nn.Module
    convolution: ShiftConvolution
    alpha: Tensor
    beta: Tensor

    def __post_init__(self) -> None:
        """Check the two that get folded."""
        if not is_pointwise(self.projection):
            raise TypeError(
                f"reparameterize folds a projection that is a 1x1 nn.Conv2d of stride 1, got {self.projection}"
            )
        check_folds(self.projection, self.convolution)
        if type(self.convolution) is not ShiftConvolution:
            raise TypeError(
                f"reparameterize folds a convolution path that is a ShiftConvolution, got {self.convolution}"
            )

    def folded_path(self) -> tuple[Tensor, Tensor | None]:
        """β and the convolution path as one grouped convolution, ``[maps, k, k, N, head_dim]``, in float64.

        And what the bias of the fully connected layer adds, as a convolution ``[C, 1, k, k]`` of a map of ones.
        """
        path = self.convolution
        path = copy.deepcopy(path).to(exact(path.fc).device, torch.float64)
        beta, bias = exact(self.beta).to(path.fc.device), path.folded_bias()
        return path.folded_weight() * beta, None if bias is None else bias * beta


def multiply_adds(parts: Parts) -> dict[Form, int]:
    """What every form costs for one output pixel, less what depends on the size of the map.

    That is the attention's own products, the same in all forms, and what a bias before the zero border adds.

    Example:
        >>> from convattn import ACmix
        >>> layer = ACmix(64, 64)
        >>> multiply_adds(Parts(layer.projection, layer.attention, layer.convolution, *layer.mix.rates()))
        {'grouped': 19200, 'dense': 49152, 'unfused': 19200}
    """
    path, c_in = parts.convolution, parts.projection.in_channels
    channels, taps = path.num_heads * path.head_dim, path.kernel_size[0] * path.kernel_size[1]
    inputs = path.stride[0] * path.stride[1]
    projection = parts.projection.out_channels * c_in * inputs
    return {
        "grouped": projection + path.maps * taps * channels,
        "dense": projection + taps * channels * c_in,
        "unfused": projection + path.maps * taps * path.head_dim * inputs + path.shift_multiply_adds(inputs),
    }


def fold(parts: Parts, form: FormChoice = "auto", example: Tensor | None = None) -> ReparameterizedACmix:
    """The inference form of an operator's parts.

    Args:
        parts: of a trained operator; the attention path is taken over, all else is copied.
        form: ``"auto"``: the fewest multiply-adds (:func:`multiply_adds`), ``"grouped"`` being given some more
            (:data:`convattn.layers.folding.PASS_SAVED`), or with an ``example`` the least time.
        example: ``[B, C_in, H, W]``, what the operator will run on.
    """
    kinds: dict[Form, type[ReparameterizedACmix]] = {
        "grouped": GroupedACmix,
        "dense": DenseACmix,
        "unfused": UnfusedACmix,
    }
    return make_form(form, lambda name: kinds[name](parts), multiply_adds(parts), enough=PASS_SAVED, example=example)


def fused_attention(path: nn.Module, num_heads: int, stride: tuple[int, int]) -> LocalAttention | None:
    """An attention path that :func:`convattn.ops.acmix` computes: local, with a linear position or none; else None."""
    if type(path) is not LocalAttention or type(path.position) not in (LinearPosition, type(None)):
        return None
    same = (path.num_heads, path.neighborhood.stride) == (num_heads, stride)
    return path if same and not is_hooked(path) else None


class ReparameterizedACmix(nn.Module):
    """What :meth:`convattn.ACmix.reparameterize` leaves of the operator: this base is the part that the forms share.

    Args:
        parts: of a trained operator.
    """

    form: Form

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        conv, path = parts.projection, parts.convolution
        self.projection = convolution_like(conv, exact(conv.weight), conv.bias, conv.weight)
        self.attention = parts.attention
        channels = path.num_heads * path.head_dim
        query_channels = (conv.out_channels - channels) // 2
        self.split = (query_channels, query_channels, channels)
        self.scale = parameter_like(exact(parts.alpha), path.fc)
        self.bias: nn.Parameter | None = None
        self.border: nn.Parameter | None = None
        self.stride, self.dilation = path.stride, path.dilation
        self.activation: Activation = "none"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        qkv = self.projection(x)
        attention, convolution = self.attention(*qkv.split(self.split, 1)), self.convolve(x, qkv)
        if self.border is not None:
            convolution = convolution + self.convolve_ones(x, self.border).to(convolution.dtype)
        out = torch.addcmul(convolution, attention, self.scale.to(attention.dtype)[:, None, None])
        return F.relu(out) if self.activation == "relu" else out

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included and border not, from the input or from its projection."""
        raise NotImplementedError

    @torch.no_grad()
    def absorb(self, batch_norm: nn.Module | None = None, activation: Activation = "none") -> None:
        """Take over the batch norm (in eval mode) that follows, then the activation.

        Raises:
            ValueError: an activation was taken over before, an unknown one, or a batch norm without running
                statistics or of other channels.
        """
        if activation not in ("none", "relu"):
            raise ValueError(f"activation must be 'none' or 'relu', got {activation!r}")
        if self.activation != "none" and batch_norm is not None:
            raise ValueError("a batch norm after a ReLU cannot be taken over: absorb it before the activation")
        if batch_norm is not None:
            gain, shift = batch_norm_line(batch_norm, self.split[-1])
            self._scale_convolution(gain)
            if self.border is not None:
                self.border = scaled(self.border, gain[:, None, None, None])
            self.bias = parameter_like(shift, self.scale) if self.bias is None else scaled(self.bias, gain, shift)
            self.scale = scaled(self.scale, gain)
        if activation != "none":
            self.activation = activation

    def convolve_ones(self, x: Tensor, border: Tensor) -> Tensor:
        """``[C, 1, kh, kw]`` over a map of ones of the input's size: what a bias before a zero border adds."""
        rows, columns = (
            _taps_inside(size, taps, stride, dilation, border)
            for size, taps, stride, dilation in zip(
                map_size(x), border.shape[2:], self.stride, self.dilation, strict=True
            )
        )
        by_row = torch.einsum("yk,ckl->ylc", rows, border.squeeze(1))
        return torch.einsum("xl,ylc->yxc", columns, by_row).permute(2, 0, 1)

    def _scale_convolution(self, gain: Tensor) -> None:
        """Multiply the outputs of the convolution path, less bias and border, by ``[C]``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The form, and what was taken over."""
        ending = [] if self.bias is None else ["batch norm"]
        ending += [] if self.activation == "none" else [self.activation]
        return f"form={self.form!r}" + (f", absorbed {' and '.join(ending)}" if ending else "")


class GroupedACmix(ReparameterizedACmix):
    """The projection, then both paths from q, k and v; the convolution path is one grouped convolution.

    With local attention of linear position, or none, all of it is one call of :func:`convattn.ops.acmix`.

    Args:
        parts: of a trained operator.
    """

    form = "grouped"
    _prepared: Prepared | None = None

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        path = parts.convolution
        self.kernel_size, self.maps = path.kernel_size, path.maps
        self.num_heads, self.head_dim = path.num_heads, path.head_dim
        weight, border = parts.folded_path()
        # three dimensions: a module's conversion to channels_last refuses parameters of five
        self.weight = parameter_like(weight.flatten(0, 2), path.fc)
        self.border = None if border is None else parameter_like(border, path.fc)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        attention = self.fused()
        if attention is None:
            return super().forward(x)
        if torch.compiler.is_compiling():
            return apply(self.inputs(x, attention))
        tables, options = self._tables(attention), self._options(attention)
        prepared = self._prepared
        if prepared is None or not prepared.serves(x, tables, options):
            inputs = self.inputs(x, attention)
            prepared = self._prepared = operator.prepared(inputs, tables, options)
            if prepared is None:
                return apply(inputs)
        return prepared(x)

    def fused(self) -> LocalAttention | None:
        """The attention path, where one call of the operator is all; None where a part is hooked or of another kind."""
        projection: Any = self._modules["projection"]
        attention: Any = self._modules["attention"]
        if type(projection) is not nn.Conv2d or is_hooked(projection) or self.border is not None:
            return None
        return fused_attention(attention, self.num_heads, self.stride)

    def inputs(self, x: Tensor, attention: LocalAttention) -> AcmixInputs:
        """What that call gets."""
        of = self.projection
        tables = of.weight, of.bias, attention.position_weight, self.kernel(), self.scale, self.bias
        return AcmixInputs(x, *tables, *self._options(attention))

    def _tables(self, attention: LocalAttention) -> tuple[Tensor | None, ...]:
        """Its tensors but the map, from torch's own tables: asking for attributes takes four times as long."""
        projection: Any = self._modules["projection"]
        of, own = projection._parameters, self._parameters
        return of["weight"], of["bias"], attention.position_weight, own["weight"], own["scale"], own.get("bias")

    def _options(self, attention: LocalAttention) -> tuple[Neighborhood, int, tuple[int, int], Activation]:
        return attention.neighborhood, self.num_heads, self.dilation, self.activation

    def kernel(self) -> Tensor:
        """``[maps, k, k, N, head_dim]``: from map t and tap (y, x) to output n of a head channel."""
        return self.weight.view(self.maps, *self.kernel_size, self.num_heads, self.head_dim)

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included and border not, from the projection."""
        weight = self.kernel().to(qkv.dtype)
        bias = None if self.bias is None else self.bias.to(qkv.dtype)
        return group_convolution(qkv, weight, bias, stride=self.stride, dilation=self.dilation)

    def _scale_convolution(self, gain: Tensor) -> None:
        self.weight = scaled(self.weight, gain.unflatten(0, (self.head_dim, self.num_heads)).t())


class DenseACmix(ReparameterizedACmix):
    """The convolution path as one convolution of the input; the projection for attention alone.

    The projection's bias meets zeros beyond the border, so what it adds depends on the place: it is the convolution
    of a map of ones.

    Args:
        parts: of a trained operator.
    """

    form = "dense"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        path, like = parts.convolution, self.projection.weight
        self.padding = same_padding(path.kernel_size, path.dilation)
        weight, border = parts.folded_path()
        into = exact(self.projection.weight).flatten(1).unflatten(0, (path.maps, path.head_dim))
        self.weight = parameter_like(torch.einsum("tyxog,tgc->gocyx", weight, into).flatten(0, 1), like)
        if self.projection.bias is not None:
            bias = exact(self.projection.bias).unflatten(0, (path.maps, path.head_dim))
            of_projection = torch.einsum("tyxog,tg->goyx", weight, bias).flatten(0, 1).unsqueeze(1)
            border = of_projection if border is None else of_projection + border
        self.border = None if border is None else parameter_like(border, like)

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included and border not, from the input."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def _scale_convolution(self, gain: Tensor) -> None:
        self.weight = scaled(self.weight, gain[:, None, None, None])


class UnfusedACmix(ReparameterizedACmix):
    """The parts as they were, α, β and a batch norm folded into them.

    Args:
        parts: of a trained operator.
    """

    form = "unfused"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.convolution = parts.convolution.scaled_copy(parts.beta)
        self.gain: nn.Parameter | None = None

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included, from the projection."""
        out: Tensor = self.convolution(*qkv.split(self.split, 1))
        if self.gain is not None:
            out = out * self.gain.to(out.dtype)[:, None, None]
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _scale_convolution(self, gain: Tensor) -> None:
        if self.convolution.kernel is not None and self.convolution.has_kernel_by_output:
            self.convolution.kernel = scaled(self.convolution.kernel, gain[:, None, None, None])
        else:  # the N outputs of a head channel come from one sum, which a gain of each output cannot enter
            self.gain = parameter_like(gain, self.scale) if self.gain is None else scaled(self.gain, gain)


def _taps_inside(size: int, taps: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """``[outputs, taps]``: 1 where a tap of an output reads the axis, 0 where it lies beyond."""
    centres = torch.arange(strided_size(size, stride), device=like.device) * stride
    read = centres[:, None] + (torch.arange(taps, device=like.device) - taps // 2) * dilation
    return ((read >= 0) & (read < size)).to(like.dtype)
