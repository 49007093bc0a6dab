"""What the layers of a network see, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from convattn.cost import count


@dataclass
class Observed:
    """One image's way through a network.

    Args:
        shapes: module -> the shape of its input, without the batch.
        calls: module -> how often it is called.
        macs: multiply-adds of the whole network for one image; None where no run was possible.
        input_size: of the image.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    macs: int | None = None
    input_size: tuple[int, ...] | None = None


def observe(model: nn.Module, names: Iterable[str], example: Any) -> Observed:
    """Watch a run: on the meta device where the network can, else on the example.

    Args:
        model: the network; it is left as it is.
        names: of the modules to watch.
        example: an input, a tuple of inputs, or None: an image of the size that a timm network names, else 224².
    """
    inputs = example if isinstance(example, tuple) or example is None else (example,)
    size = _image_size(model, inputs)
    watched, modules = Observed(input_size=size), dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(_note(watched, name)) for name in names]
    try:
        if size is not None and len(size) == 3:
            watched.macs = _count(model, size)
        if watched.macs is None and inputs is not None:
            watched.shapes.clear()
            watched.calls.clear()
            watched.macs = _run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return watched


def macs_of(module: nn.Module, shape: tuple[int, ...] | None, calls: int) -> int | None:
    """Multiply-adds of a layer on an input ``(C, H, W)``."""
    if shape is None or len(shape) != 3:
        return None
    found = _count(module, shape)
    return None if found is None else found * calls


def parameters_of(module: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def _note(watched: Observed, name: str) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            watched.shapes.setdefault(name, tuple(args[0].shape[-3:]))
            watched.calls[name] = watched.calls.get(name, 0) + 1

    return note


def _image_size(model: nn.Module, inputs: tuple[Any, ...] | None) -> tuple[int, ...] | None:
    if inputs is not None:
        only = len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() == 4
        return tuple(inputs[0].shape[1:]) if only else None
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, dict) else None
    return tuple(size) if size else (3, 224, 224)


def _count(module: nn.Module, size: tuple[int, ...]) -> int | None:
    try:
        return count(module, (size[0], size[1], size[2])).macs
    except Exception:  # whatever a network's own code raises on tensors that hold nothing, or of another size
        return None


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> int | None:
    """The example itself, in eval mode; multiply-adds for one of its images."""
    modes = {module: module.training for module in model.modules()}
    batch = next((t.shape[0] for t in inputs if isinstance(t, Tensor) and t.dim() == 4), 1)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(*tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2 // max(1, batch)
