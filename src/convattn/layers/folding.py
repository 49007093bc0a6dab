"""What the inference forms of all operators share: sums in float64, one way to choose a form, one way to take it.

An operator with inference forms is a :class:`Folds`; its forms are in a file of their own beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from convattn.layers._checks import has_own_forward

Form = TypeVar("Form", bound=str)
Made = TypeVar("Made", bound=nn.Module)

PASS_SAVED = 1.5
"""How many multiply-adds ``"grouped"`` may have for one of the cheapest form: it reads q, k and v once, in one pass."""


GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""Arguments of ``nn.Conv2d`` that say where it reads."""


class Folds(nn.Module):
    """An operator that has inference forms, by timm's convention.

    ``reparameterized`` is None as long as the operator has its trained parts. ``reparameterize()`` replaces them by a
    module whose ``form`` is the name of the form.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    """The names of all forms."""
    reparameterized: Any

    def _take_form(self, form: str, make: Callable[[], nn.Module], *parts: str) -> None:
        """Put what ``make`` gives in the place of those parts. A second call does nothing.

        Raises:
            ValueError: an unknown form, or another one than an earlier call chose.
        """
        known = ("auto", *self.forms)
        if form not in known:
            raise ValueError(f"form must be one of {', '.join(map(repr, known))}, got {form!r}")
        if self.reparameterized is None:
            with torch.no_grad():
                self.reparameterized = make()
            for part in parts:
                delattr(self, part)
        elif form not in ("auto", self.reparameterized.form):
            raise ValueError(
                f"the operator is reparameterized as {self.reparameterized.form!r} and its trained parameters are "
                f"gone: to have it {form!r}, build and load it anew"
            )


def make_form(
    form: Form | Literal["auto"],
    make: Callable[[Form], Made],
    counted: Mapping[Form, int],
    *,
    costs: Mapping[Form, float] | None = None,
    enough: float = 1.0,
    example: Tensor | None = None,
) -> Made:
    """The form of that name, or under ``"auto"`` the cheapest.

    Args:
        form: a key of ``counted`` or ``"auto"``.
        make: makes a form.
        counted: the forms that are exact, in order of preference, and the multiply-adds of each.
        costs: what ``"auto"`` compares; None: ``counted``.
        enough: how many times as much as the cheapest form the first in order may cost.
        example: what the operator will run on. With it, ``"auto"`` takes the form of the least time on it. A form of
            twice the multiply-adds of another one is not tried.

    Example:
        >>> make_form("auto", lambda form: nn.Linear(1, 1), {"grouped": 3, "dense": 2})
        Linear(in_features=1, out_features=1, bias=True)
    """
    if form != "auto":
        return make(form)
    if example is None:
        costs = counted if costs is None else costs
        most = enough * min(costs.values())
        return make(next(name for name in counted if costs[name] <= most))
    least = min(counted.values())
    candidates = [make(name) for name, count in counted.items() if count < 2 * least]
    times = [_seconds(candidate, example) for candidate in candidates] if len(candidates) > 1 else [0.0]
    return candidates[times.index(min(times))]


def _seconds(candidate: nn.Module, example: Tensor) -> float:
    """The median time of a call, with the threads that torch has now."""
    from torch.utils.benchmark import Timer  # loads torch's tools for building extensions, which nobody else needs

    timer = Timer("run(x)", globals={"run": candidate, "x": example}, num_threads=torch.get_num_threads())
    timer.timeit(2)
    return float(timer.blocked_autorange(min_run_time=0.05).median)


def check_folds(*parts: nn.Module) -> None:
    """Parts that compute what their parameters say, so that these can be folded.

    Raises:
        TypeError: an adapter replaced a forward, or is a convolution of another class.
    """
    for module in (module for part in parts for module in part.modules()):
        kind: Any = type_before_parametrizations(module)
        if has_own_forward(module) or (isinstance(module, nn.Conv2d) and kind.forward is not nn.Conv2d.forward):
            raise TypeError(
                f"folding takes parameters over, and {kind.__name__} computes something else: its forward was "
                "replaced; merge the adapter into the weights, or remove it, before"
            )


def is_pointwise(module: nn.Module) -> bool:
    """Whether it is a 1x1 convolution of one group, stride 1 and no padding."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)
        and module.padding in (0, (0, 0), "valid", "same")
    )


def exact(value: Tensor) -> Tensor:
    """A tensor in float64, on the CPU if its device has none.

    Example:
        >>> exact(torch.ones(1))
        tensor([1.], dtype=torch.float64)
    """
    return value.detach().to("cpu" if value.device.type == "mps" else value.device, torch.float64)


def parameter_like(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter with the dtype, device and ``requires_grad`` of another."""
    return nn.Parameter(value.to(like.device, like.dtype).contiguous(), requires_grad=like.requires_grad)


def scaled(value: Tensor, rate: Tensor, shift: Tensor | None = None) -> nn.Parameter:
    """A parameter times a rate, plus a shift, computed in float64.

    Example:
        >>> scaled(nn.Parameter(torch.ones(2, 1)), torch.tensor([[2.0], [3.0]])).tolist()
        [[2.0], [3.0]]
    """
    precise = exact(value)
    product = precise * exact(rate).to(precise.device)
    return parameter_like(product if shift is None else product + exact(shift).to(precise.device), value)


def batch_norm_line(batch_norm: nn.Module, channels: int | None = None) -> tuple[Tensor, Tensor]:
    r"""A batch norm in eval mode as gain and shift of each channel, in float64.

    .. math:: g = w / \sqrt{\mathrm{var} + \epsilon}, \qquad h = b - g\,\mathrm{mean}

    Args:
        batch_norm: any that keeps running statistics.
        channels: of the operator before it; None: any.

    Raises:
        ValueError: it has no running statistics, so it is no fixed line, or it is of other channels.
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
    if channels not in (None, len(mean)):
        raise ValueError(f"the batch norm has {len(mean)} channels, the operator {channels}")
    weight, bias = getattr(batch_norm, "weight", None), getattr(batch_norm, "bias", None)
    gain = (exact(variance) + float(batch_norm.eps)).rsqrt()  # type: ignore[arg-type]
    if weight is not None:
        gain = gain * exact(weight)
    shift = -gain * exact(mean)
    return gain, shift if bias is None else shift + exact(bias)


def convolution_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Conv2d:
    """A plain convolution with the geometry of another, and with parameters that have dtype and device of ``like``."""
    geometry: dict[str, Any] = {name: getattr(conv, name) for name in GEOMETRY}
    made = nn.Conv2d(**geometry, bias=bias is not None, device="meta")
    made.weight = parameter_like(weight, like)
    if bias is not None:
        made.bias = parameter_like(bias, like)
    return made


@torch.no_grad()
def scale_outputs(conv: Any, gain: Tensor, shift: Tensor | None = None) -> None:
    """Multiply a convolution's outputs by ``[C]``, then add ``[C]``. What shares its old parameters keeps them.

    Args:
        conv: of torch, or a module with such a method ``multiply``.
        gain: ``[C]``.
        shift: ``[C]`` or None.
    """
    if hasattr(conv, "multiply"):
        conv.multiply(gain, shift)
        return
    weight, bias = conv.weight, conv.bias
    if isinstance(conv, nn.ConvTranspose2d):
        by_output = gain.unflatten(0, (conv.groups, -1)).repeat_interleave(len(weight) // conv.groups, 0)
    else:
        by_output = gain[:, None]
    conv.weight = scaled(weight, by_output[..., None, None])
    if bias is not None:
        conv.bias = scaled(bias, gain, shift)
    elif shift is not None:
        conv.bias = parameter_like(shift, weight)


def scale_values(projection: nn.Module, gain: Tensor, shift: Tensor | None = None) -> None:
    """The same for the values alone, the last third of what a projection gives: attention averages them."""
    queries_and_keys = gain.new_ones(2 * len(gain))
    whole = None if shift is None else torch.cat([torch.zeros_like(queries_and_keys), shift])
    scale_outputs(projection, torch.cat([queries_and_keys, gain]), whole)


def put_in_place(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module wherever another one is in a network, save inside the new one, which may be around the old."""
    inside = set(new.modules())
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old and parent not in inside:
                setattr(parent, name, new)
