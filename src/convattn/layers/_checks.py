"""Argument checks that the layers share."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.module import _has_any_global_hook

from convattn.ops.neighborhood import IntPair, as_pair

DEFAULT_HEADS = 4


def check_odd(kernel_size: IntPair, name: str = "kernel_size") -> tuple[int, int]:
    """A kernel that has a centre.

    Raises:
        ValueError: an even size.
    """
    kernel = as_pair(kernel_size, name)
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"{name} must be odd, got {kernel_size}; {kernel[0] | 1} would do")
    return kernel


def check_division(channels: int, num_heads: int) -> None:
    """Heads that divide the channels.

    Raises:
        ValueError: they do not; the message names some that do.
    """
    if num_heads < 1 or channels % num_heads:
        fitting = [n for n in range(1, min(channels, 64) + 1) if channels % n == 0]
        raise ValueError(f"out_channels={channels} must be divisible by num_heads, got {num_heads}; {fitting} would do")


def nearest_heads(channels: int, num_heads: int) -> int:
    """Return the divisor of the channels that is nearest to a number of heads, the smaller one of two.

    Example:
        >>> nearest_heads(64, 4), nearest_heads(90, 4), nearest_heads(7, 4)
        (4, 3, 1)
    """
    fitting = [heads for heads in range(1, channels + 1) if channels % heads == 0]
    return min(fitting, key=lambda heads: (abs(heads - num_heads), heads))


def heads_of(channels: int, num_heads: int | None) -> int:
    """Return a number of heads that divides the channels; for None that is 4, or the divisor nearest to it.

    Raises:
        ValueError: a given number does not divide the channels.

    Example:
        >>> heads_of(64, None), heads_of(66, None), heads_of(66, 6)
        (4, 3, 6)
    """
    if num_heads is None:
        check_counts(out_channels=channels)
        return nearest_heads(channels, DEFAULT_HEADS)
    check_division(channels, num_heads)
    return num_heads


def check_counts(**counts: int) -> None:
    """Integers of at least 1.

    Raises:
        ValueError: another number; the message names it.
    """
    for name, count in counts.items():
        if not hasattr(count, "__index__") or count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_choice(name: str, given: object, choices: Any) -> None:
    """One of the values of a ``Literal``.

    Raises:
        ValueError: another.
    """
    if given not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {given!r}")


def check_conv2d_words(padding: Any, same: tuple[int, int], groups: int, padding_mode: str) -> None:
    """Check the words of ``nn.Conv2d`` that an operator takes at one value alone.

    Args:
        padding: None, ``"same"`` or what keeps the size of the map.
        same: the padding with which a convolution keeps the size of the map.
        groups: 1.
        padding_mode: ``"zeros"``.

    Raises:
        ValueError: another value; the message says what would do.
    """
    if padding not in (None, "same") and (padding == "valid" or as_pair(padding, "padding", 0) != same):
        raise ValueError(
            f"padding must be {same}, which keeps the size of the map, got {padding!r}: leave it out and crop or pad "
            "the map, or take XVolution.around(conv), which keeps any padding"
        )
    if groups != 1:
        raise ValueError(
            f"groups must be 1, since every output reads all inputs, got {groups}: leave it out, or take "
            "XVolution.around(conv), which keeps a convolution's groups"
        )
    if padding_mode != "zeros":
        raise ValueError(
            f"padding_mode must be 'zeros', got {padding_mode!r}: leave it out, or take XVolution.around(conv), "
            "which keeps a convolution's border"
        )


def check_rates(**rates: object) -> None:
    """Parts of the training in which something is dropped: at least 0, less than 1.

    Raises:
        ValueError: another number, or none.
    """
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {rate!r}")


def check_input(x: Tensor, in_channels: int) -> None:
    """A map of the channels that a layer was built for.

    Raises:
        ValueError: another shape.
    """
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f"the input must be [B, {in_channels}, H, W] or [{in_channels}, H, W], got {list(x.shape)}")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"the input must have at least one pixel, got H={x.shape[2]}, W={x.shape[3]}")


def check_network(network: object, work: Literal["convert", "export", "optimize"]) -> None:
    """A network whose modules can be replaced.

    Raises:
        TypeError: it is compiled, scripted or exported, or no network.
    """
    if hasattr(network, "_orig_mod"):
        raise TypeError(f"the network is compiled: {work} it first, then torch.compile what comes out")
    if isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"the network is scripted, so its modules cannot be replaced: {work} it before torch.jit")
    if isinstance(network, torch.export.ExportedProgram) or _is_flat(network):
        raise TypeError(f"the network is exported, so it has no modules to replace: {work} it before torch.export")
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"the network must be a torch.nn.Module, got {type(network).__name__}; a YOLO object has it as .model"
        )


def _is_flat(network: object) -> bool:
    """Whether it is a graph of functions on weights, no module called that has some: what ``torch.export`` makes."""
    if not isinstance(network, GraphModule):
        return False
    called = (network.get_submodule(str(node.target)) for node in network.graph.nodes if node.op == "call_module")
    return all(next(module.parameters(), None) is None for module in called)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody listens to a module or to a part of one, or replaced its forward, so that it must be called.

    Adapters (LyCORIS, kohya) and offloading (accelerate) set ``module.forward``; hooks on all modules are torch's
    ``register_module_forward_hook`` and its like.
    """
    if _has_any_global_hook():  # a table of hooks; torch.compile of 2.11 refuses bool() of it
        return True
    return any(map(_is_hooked, modules))


def _is_hooked(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    if has_own_forward(module):
        return True
    parts = module._modules
    if parts:
        return any(part is not None and _is_hooked(part) for part in parts.values())
    return False


def has_own_forward(module: nn.Module) -> bool:
    """Whether this one module's forward was replaced: its parameters do not say what it computes."""
    return "forward" in module.__dict__
