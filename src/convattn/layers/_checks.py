"""Argument checks that the layers share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.module import _has_any_global_hook

from convattn.ops.neighborhood import IntPair, as_pair


def check_odd(kernel_size: IntPair) -> tuple[int, int]:
    """A kernel that has a centre.

    Raises:
        ValueError: an even size.
    """
    kernel = as_pair(kernel_size, "kernel_size")
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}; {kernel[0] | 1} would do")
    return kernel


def check_division(channels: int, num_heads: int) -> None:
    """Heads that divide the channels.

    Raises:
        ValueError: they do not; the message names some that do.
    """
    if num_heads < 1 or channels % num_heads:
        fitting = [n for n in range(1, min(channels, 64) + 1) if channels % n == 0]
        raise ValueError(f"out_channels={channels} must be divisible by num_heads, got {num_heads}; {fitting} would do")


def check_counts(**counts: int) -> None:
    """Integers of at least 1.

    Raises:
        ValueError: another number; the message names it.
    """
    for name, count in counts.items():
        if not hasattr(count, "__index__") or count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


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


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens to a module or to a part of it, or replaced its forward, so that it must be called.

    Adapters (LyCORIS, kohya) and offloading (accelerate) set ``module.forward``; hooks on all modules are torch's
    ``register_module_forward_hook`` and its like.
    """
    return bool(_has_any_global_hook()) or _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    if has_own_forward(module):
        return True
    return any(part is not None and _is_hooked(part) for part in module._modules.values())


def has_own_forward(module: nn.Module) -> bool:
    """Whether this one module's forward was replaced: its parameters do not say what it computes."""
    return "forward" in module.__dict__
