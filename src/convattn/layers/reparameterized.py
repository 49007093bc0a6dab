r"""ACmix for inference: everything linear in it folded together, in whichever exact form is cheapest.

The fully connected layer, the grouped convolution and β are one grouped convolution from the maps of a head channel,
3N for most attention paths, to its N outputs (``"grouped"``). With the projection before it, it is one convolution of
the input (``"dense"``). A batch norm that follows scales and shifts the outputs of both paths, so it folds too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._checks import check_folds, is_hooked
from convattn.layers.attention import LinearPosition, LocalAttention
from convattn.layers.convolution import ShiftConvolution
from convattn.ops import acmix, group_convolution
from convattn.ops.acmix import Activation

Form: TypeAlias = Literal["grouped", "dense", "unfused"]
FormChoice: TypeAlias = Literal["auto", "grouped", "dense", "unfused"]
FORMS: tuple[Form, ...] = ("grouped", "dense", "unfused")


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
        conv, path = self.projection, self.convolution
        plain = isinstance(conv, nn.Conv2d) and (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)
        if not plain or conv.padding not in (0, (0, 0), "valid", "same"):
            raise TypeError(f"reparameterize folds a projection that is a 1x1 nn.Conv2d of stride 1, got {conv}")
        check_folds(conv, path)
        if type(path) is not ShiftConvolution:
            raise TypeError(f"reparameterize folds a convolution path that is a ShiftConvolution, got {path}")


PASS_SAVED = 1.5
"""How many multiply-adds "grouped" may have for one of the cheapest form: it reads q, k and v once, in one pass."""


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
    # a sum of shifted maps counts as a multiply-add a tap
    shifted = {"tensor": taps * path.head_dim * inputs, "fixed": taps * taps * path.head_dim}
    shift = shifted.get(path.shift, taps * taps * channels)
    return {
        "grouped": projection + path.maps * taps * channels,
        "dense": projection + taps * channels * c_in,
        "unfused": projection + path.maps * taps * path.head_dim * inputs + shift,
    }


@torch.no_grad()
def fold(parts: Parts, form: FormChoice = "auto", example: Tensor | None = None) -> ReparameterizedACmix:
    """The inference form of an operator's parts.

    Args:
        parts: of a trained operator; the attention path is taken over, all else is copied.
        form: ``"auto"``: the fewest multiply-adds (:func:`multiply_adds`), ``"grouped"`` being given some more
            (:data:`PASS_SAVED`), or with an ``example`` the least time.
        example: ``[B, C_in, H, W]``, what the operator will run on.

    Raises:
        ValueError: an unknown form.
        TypeError: parts that cannot be folded (:class:`Parts`).
    """
    if form != "auto" and form not in _FOLDED:
        raise ValueError(f"form must be 'auto', {', '.join(map(repr, FORMS))}, got {form!r}")
    if form != "auto":
        return _FOLDED[form](parts)
    if example is None:
        counted = multiply_adds(parts)
        enough = PASS_SAVED * min(counted.values())
        return _FOLDED[next(name for name in FORMS if counted[name] <= enough)](parts)
    candidates = [_FOLDED[name](parts) for name in FORMS]
    times = [_seconds(candidate, example) for candidate in candidates]
    return candidates[times.index(min(times))]


def _seconds(candidate: nn.Module, example: Tensor) -> float:
    """The median time of a call, with the threads that torch has now."""
    from torch.utils.benchmark import Timer  # loads torch's tools for building extensions, which nobody else needs

    timer = Timer("run(x)", globals={"run": candidate, "x": example}, num_threads=torch.get_num_threads())
    timer.timeit(2)
    return float(timer.blocked_autorange(min_run_time=0.05).median)


class ReparameterizedACmix(nn.Module):
    """What :meth:`convattn.ACmix.reparameterize` leaves of the operator: this base is the part that the forms share.

    Args:
        parts: of a trained operator.
    """

    form: Form

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.projection = _copy_of(parts.projection)
        self.attention = parts.attention
        channels = parts.convolution.num_heads * parts.convolution.head_dim
        query_channels = (self.projection.out_channels - channels) // 2
        self.split = (query_channels, query_channels, channels)
        self.scale = _parameter(_exact(parts.alpha), parts.convolution.fc)
        self.bias: nn.Parameter | None = None
        self.border: nn.Parameter | None = None
        self.stride, self.dilation = parts.convolution.stride, parts.convolution.dilation
        self.activation: Activation = "none"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        qkv = self.projection(x)
        attention, convolution = self.attention(*qkv.split(self.split, 1)), self.convolve(x, qkv)
        out = torch.addcmul(convolution, attention, self.scale.to(attention.dtype)[:, None, None])
        return F.relu(out) if self.activation == "relu" else out

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included, from the input or from its projection."""
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
            gain, shift = batch_norm_line(batch_norm)
            channels = self.split[-1]
            if len(gain) != channels:
                raise ValueError(f"the batch norm has {len(gain)} channels, the operator {channels}")
            self._multiply_convolution(gain)
            before = 0 if self.bias is None else _exact(self.bias) * gain
            self.bias = _parameter(before + shift, self.scale)
            self.scale = _parameter(_exact(self.scale) * gain, self.scale)
        if activation != "none":
            self.activation = activation

    def convolve_ones(self, x: Tensor, border: Tensor) -> Tensor:
        """``[C, 1, kh, kw]`` over a map of ones of the input's size: what a bias before a zero border adds."""
        rows, columns = (
            _taps_inside(size, taps, stride, dilation, border)
            for size, taps, stride, dilation in zip(
                x.shape[2:], border.shape[2:], self.stride, self.dilation, strict=True
            )
        )
        by_row = torch.einsum("yk,ckl->ylc", rows, border.squeeze(1))
        return torch.einsum("xl,ylc->yxc", columns, by_row).permute(2, 0, 1)

    def _multiply_convolution(self, gain: Tensor) -> None:
        """Multiply the outputs of the convolution path, less the bias, by ``[C]``."""
        raise NotImplementedError

    def _multiply_border(self, gain: Tensor) -> None:
        if self.border is not None:
            self.border = _parameter(_exact(self.border) * gain[:, None, None, None], self.border)

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

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        path = parts.convolution
        self.kernel_size = path.kernel_size
        self.num_heads, self.head_dim = path.num_heads, path.head_dim
        # three dimensions: a module's conversion to channels_last refuses parameters of five
        self.weight = _parameter(_folded_weight(parts).flatten(0, 2), path.fc)
        self.maps = path.maps
        border = _folded_bias(parts)
        self.border = None if border is None else _parameter(border, path.fc)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, ceil(H/stride), ceil(W/stride)]``."""
        attention = self._attention_of_the_operator()
        if attention is None:
            return super().forward(x)
        position = attention.position
        return acmix(
            x,
            self.projection.weight,
            self.projection.bias,
            position.weight if isinstance(position, LinearPosition) else None,
            self.kernel(),
            self.scale,
            self.bias,
            nbhd=attention.neighborhood,
            num_heads=self.num_heads,
            dilation=self.dilation,
            activation=self.activation,
        )

    def _attention_of_the_operator(self) -> LocalAttention | None:
        """The attention path, where it is one that ``ops.acmix`` computes."""
        path = self.attention
        if type(path) is not LocalAttention or type(path.position) not in (LinearPosition, type(None)):
            return None
        if type(self.projection) is not nn.Conv2d or is_hooked(path) or is_hooked(self.projection):
            return None
        same = (path.num_heads, path.neighborhood.stride) == (self.num_heads, self.stride)
        return path if same and self.border is None else None

    def kernel(self) -> Tensor:
        """``[maps, k, k, N, head_dim]``: from map t and tap (y, x) to output n of a head channel."""
        return self.weight.view(self.maps, *self.kernel_size, *self.weight.shape[1:])

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included, from the projection."""
        weight = self.kernel().to(qkv.dtype)
        bias = None if self.bias is None else self.bias.to(qkv.dtype)
        out = group_convolution(qkv, weight, bias, stride=self.stride, dilation=self.dilation)
        if self.border is None:
            return out
        return out + self.convolve_ones(x, self.border).to(out.dtype)

    def _multiply_convolution(self, gain: Tensor) -> None:
        by_group = gain.unflatten(0, (self.head_dim, self.num_heads)).t()
        self.weight = _parameter(_exact(self.weight) * by_group, self.weight)
        self._multiply_border(gain)


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
        self.padding = _padding(path.kernel_size, path.dilation)
        weight = _folded_weight(parts)
        into = _exact(self.projection.weight).flatten(1).unflatten(0, (path.maps, path.head_dim))
        self.weight = _parameter(torch.einsum("tyxog,tgc->gocyx", weight, into).flatten(0, 1), like)
        border = _folded_bias(parts)
        if self.projection.bias is not None:
            bias = _exact(self.projection.bias).unflatten(0, (path.maps, path.head_dim))
            of_projection = torch.einsum("tyxog,tg->goyx", weight, bias).flatten(0, 1).unsqueeze(1)
            border = of_projection if border is None else of_projection + border
        self.border = None if border is None else _parameter(border, like)

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included, from the input."""
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return out if self.border is None else out + self.convolve_ones(x, self.border).to(out.dtype)

    def _multiply_convolution(self, gain: Tensor) -> None:
        self.weight = _parameter(_exact(self.weight) * gain[:, None, None, None], self.weight)
        self._multiply_border(gain)


class UnfusedACmix(ReparameterizedACmix):
    """The parts as they were, α, β and a batch norm folded into them.

    Args:
        parts: of a trained operator.
    """

    form = "unfused"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        path = parts.convolution
        self.convolution = ShiftConvolution(
            path.num_heads * path.head_dim,
            kernel_size=path.kernel_size,
            num_heads=path.num_heads,
            stride=path.stride,
            dilation=path.dilation,
            maps=path.maps,
            bias=path.fc_bias is not None,
            shift=path.shift,
            device="meta",
        )
        fc = _exact(path.fc)
        beta = _exact(parts.beta).to(fc.device)
        self.convolution.fc = _parameter(fc * beta, path.fc)
        if path.fc_bias is not None:
            self.convolution.fc_bias = _parameter(_exact(path.fc_bias) * beta, path.fc)
        if path.kernel is not None:
            self.convolution.kernel = _parameter(_exact(path.kernel), path.kernel)
        self.gain: nn.Parameter | None = None

    def convolve(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The convolution path, bias included, from the projection."""
        out: Tensor = self.convolution(*qkv.split(self.split, 1))
        if self.gain is not None:
            out = out * self.gain.to(out.dtype)[:, None, None]
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _multiply_convolution(self, gain: Tensor) -> None:
        kernel = self.convolution.kernel
        if kernel is not None:
            self.convolution.kernel = _parameter(_exact(kernel) * gain[:, None, None, None], kernel)
        else:  # the N outputs of a head channel come from one sum, which a gain of each output cannot enter
            before = 1 if self.gain is None else _exact(self.gain)
            self.gain = _parameter(before * gain, self.scale)


_FOLDED: dict[str, Callable[[Parts], ReparameterizedACmix]] = {
    "grouped": GroupedACmix,
    "dense": DenseACmix,
    "unfused": UnfusedACmix,
}


def batch_norm_line(batch_norm: nn.Module) -> tuple[Tensor, Tensor]:
    r"""A batch norm in eval mode as gain and shift of each channel, in float64.

    .. math:: g = w / \sqrt{\mathrm{var} + \epsilon}, \qquad h = b - g\,\mathrm{mean}

    Raises:
        ValueError: it has no running statistics, so it is no fixed line.
        TypeError: its forward was replaced.

    Example:
        >>> batch_norm_line(nn.BatchNorm2d(2, eps=0.0))
        (tensor([1., 1.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
    """
    mean, variance = getattr(batch_norm, "running_mean", None), getattr(batch_norm, "running_var", None)
    if mean is None or variance is None:
        raise ValueError(
            f"{type(batch_norm).__name__} keeps no running statistics: its outputs depend on the batch, so it cannot "
            "be folded"
        )
    check_folds(batch_norm)
    weight, bias = getattr(batch_norm, "weight", None), getattr(batch_norm, "bias", None)
    gain = (_exact(variance) + float(batch_norm.eps)).rsqrt()  # type: ignore[arg-type]
    if weight is not None:
        gain = gain * _exact(weight)
    shift = -gain * _exact(mean)
    return gain, shift if bias is None else shift + _exact(bias)


def _folded_weight(parts: Parts) -> Tensor:
    """β and the convolution path as one grouped convolution, ``[maps, k, k, N, head_dim]``, float64."""
    path = _exact_path(parts)
    return path.folded_weight() * _exact(parts.beta).to(path.fc.device)


def _folded_bias(parts: Parts) -> Tensor | None:
    """β and what fc's bias adds, as a convolution of a map of ones, ``[C, 1, k, k]``, float64."""
    path = _exact_path(parts)
    bias = path.folded_bias()
    return None if bias is None else bias * _exact(parts.beta).to(bias.device)


def _exact_path(parts: Parts) -> ShiftConvolution:
    return copy.deepcopy(parts.convolution).to(_exact(parts.convolution.fc).device, torch.float64)


def _taps_inside(size: int, taps: int, stride: int, dilation: int, like: Tensor) -> Tensor:
    """``[outputs, taps]``: 1 where a tap of an output reads the axis, 0 where it lies beyond."""
    centres = torch.arange((size - 1) // stride + 1, device=like.device) * stride
    read = centres[:, None] + (torch.arange(taps, device=like.device) - taps // 2) * dilation
    return ((read >= 0) & (read < size)).to(like.dtype)


def _padding(kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    return dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2)


def _copy_of(conv: nn.Conv2d) -> nn.Conv2d:
    """Its present weight and bias in a plain convolution, whatever made them."""
    copied = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")
    copied.weight = _parameter(_exact(conv.weight), conv.weight)
    if conv.bias is not None:
        copied.bias = _parameter(_exact(conv.bias), conv.bias)
    return copied


def _exact(value: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return value.detach().to("cpu" if value.device.type == "mps" else value.device, torch.float64)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter with the dtype, device and gradient switch of another."""
    return nn.Parameter(value.to(like.device, like.dtype).contiguous(), requires_grad=like.requires_grad)
