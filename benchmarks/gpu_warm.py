"""Compiles what the ACmix layers of a network launch on a GPU, each kind of layer in a process of its own.

Triton keeps what it compiled on disk, so that a measurement of the network finds it there: compiling one kernel after
another in its own process takes most of a short loan of a GPU.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn

import convattn
from benchmarks.network import build, require_model
from convattn import ACmix

Layer = tuple[str, str, tuple[int, ...]]
"""A network, a layer in it, and the shape of the layer's input."""


def kinds(network: str, batch: int, size: int = 224) -> list[Layer]:
    """One layer of every kind: of equal channels, stride and map."""
    model = build(network).eval()
    found: dict[object, Layer] = {}

    def note(name: str, layer: ACmix, x: torch.Tensor) -> None:
        shape = (batch, *x.shape[1:])
        found.setdefault((layer.projection.out_channels, layer.stride, shape), (network, name, shape))

    for name, module in model.named_modules():
        if isinstance(module, ACmix):
            module.register_forward_pre_hook(lambda layer, args, name=name: note(name, layer, args[0]))
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return list(found.values())


def run(layer: Layer, dtype: str) -> str:
    """A training step and a folded, packed inference of one layer; its name."""
    network, name, shape = layer
    acmix: Any = build(network).get_submodule(name).cuda()
    half = getattr(torch, dtype)
    x = torch.randn(shape, device="cuda").to(memory_format=torch.channels_last)
    with torch.autocast("cuda", half, enabled=half != torch.float32):
        acmix(x.requires_grad_()).sum().backward()
    x = x.detach().to(half)
    channels = acmix.projection.out_channels // 3
    followed = nn.Sequential(acmix.cpu(), nn.BatchNorm2d(channels), nn.ReLU()).eval()
    folded = convattn.optimize(followed).to("cuda", half)
    with torch.inference_mode():
        folded(x)
    torch.cuda.synchronize()
    return name


def compiled(network: str, batch: int, dtype: str) -> Iterator[str]:
    """The name of every kind of layer once it is compiled, all at once.

    Raises:
        UserError: a network that timm does not know.
    """
    require_model(network)
    layers = kinds(network, batch)
    if not layers:
        return
    with ProcessPoolExecutor(len(layers), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, layers, [dtype] * len(layers))
