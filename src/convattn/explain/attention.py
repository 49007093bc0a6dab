"""What one pixel of an attention layer reads, and how strong the paths of an operator are, as maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convattn.layers.global_attention import GlobalAttention
from convattn.layers.local_attention import LocalAttention
from convattn.layers.pairwise import PairwiseAttention
from convattn.layers.patchwise import PatchwiseAttention
from convattn.layers.path_mix import PathMix
from convattn.layers.pssa import PSSA
from convattn.layers.spatial_reduction import SpatialReductionAttention
from convattn.layers.spatial_reduction_forms import attend_tokens
from convattn.layers.tokens import as_map, as_tokens
from convattn.layers.window_attention import WindowAttention, WindowAttention2d
from convattn.layers.xvolution import XVolution
from convattn.ops import pixel_shift_attention

Place: TypeAlias = tuple[float, float]
"""Row and column of a pixel."""

PATHS = (LocalAttention, WindowAttention, GlobalAttention, PatchwiseAttention, PairwiseAttention)
"""Layers that take q, k and v maps."""

WHOLE = (SpatialReductionAttention, PSSA)
"""Layers that make q, k and v themselves, and may have a path inside."""


@dataclass(frozen=True)
class AttentionMap:
    """What one output of an attention layer reads: the share of each pixel of its values, ``[h, w]`` of sum 1."""

    layer: str
    weights: Tensor


@dataclass(frozen=True)
class PathMaps:
    """How much the attention and the convolution of an operator add at each pixel: norms over the channels, [h, w]."""

    layer: str
    attention: Tensor
    convolution: Tensor

    @property
    def share(self) -> Tensor:
        """The attention's part of both, ``[h, w]`` from 0 to 1; a half where both add nothing."""
        both = self.attention + self.convolution
        return torch.where(both > 0, self.attention / both, 0.5)


class Listener(ExitStack):
    """Keeps what the attention layers and the operators with two paths of a network get while it runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._inputs: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}
        self._grids: dict[str, tuple[tuple[int, int], int]] = {}
        inside = ""
        for name, module in network.named_modules():
            if isinstance(module, WHOLE) or (isinstance(module, PATHS) and not _is_below(name, inside)):
                inside = name if isinstance(module, WHOLE) else inside
                self._listen(module.register_forward_pre_hook(self._keeper(name)))
            if isinstance(module, PathMix):
                self._listen(module.register_forward_pre_hook(self._mix_keeper(name.rpartition(".")[0])))
            if isinstance(module, XVolution) and module.reparameterized is None:
                self._hear_branches(name, module)

    def attention_at(self, parts: Place) -> list[AttentionMap]:
        """Return what each attention layer's output reads, at parts of the height and of the width."""
        found = ((name, weights_at(module, inputs, parts)) for name, (module, inputs) in self._inputs.items())
        return [AttentionMap(name, weights) for name, weights in found if weights is not None]

    def paths(self) -> list[PathMaps]:
        """Return how much the paths of each operator add."""
        return [PathMaps(name, *(norm_map(part) for part in parts)) for name, parts in self._parts.items()]

    def _listen(self, hook: Any) -> None:
        self.callback(hook.remove)

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inputs[name] = module, tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
            if isinstance(module, SpatialReductionAttention):
                self._grids[name] = inputs[1], module.projection.num_prefix_tokens

        return keep

    def _mix_keeper(self, name: str) -> Any:
        def keep(mix: PathMix, inputs: tuple[Tensor, Tensor]) -> None:
            parts = [rate.detach() * part.detach() for rate, part in zip(_rates_like(mix, inputs), inputs, strict=True)]
            if name in self._grids:
                size, prefix = self._grids[name]
                parts = [as_map(tokens[:, prefix:], size) for tokens in parts]
            self._parts[name] = parts[0], parts[1]

        return keep

    def _hear_branches(self, name: str, operator: XVolution) -> None:
        heard: list[Tensor] = []

        def keep(norm: nn.Module, inputs: Any, output: Tensor) -> None:
            heard[:] = [output.detach()]

        def split(operator: nn.Module, inputs: Any, output: Tensor) -> None:
            if heard:
                self._parts[name] = heard[0], output.detach() - heard[0]

        self._listen(operator.attention_norm.register_forward_hook(keep))
        self._listen(operator.register_forward_hook(split))


def _is_below(name: str, parent: str) -> bool:
    return bool(parent) and name.startswith(f"{parent}.")


def _rates_like(mix: PathMix, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    alpha, beta = mix.rates()
    return alpha.to(parts[0]), beta.to(parts[1])


def norm_map(part: Tensor) -> Tensor:
    """Return ``[1, C, h, w]`` as its norms ``[h, w]``."""
    return part[0].float().norm(dim=0).cpu()


def weights_at(module: nn.Module, inputs: tuple[Any, ...], parts: Place) -> Tensor | None:
    """Return what an attention layer's output at a place reads of its values, ``[h, w]`` of sum 1.

    With q and k fixed, the output is linear in v, and channel c of it reads channel c of v alone. So the derivatives
    of the sum of its channels by v are the weights of every channel; of heads with a softmax they are the heads' own.

    Args:
        module: the layer.
        inputs: what it was called with.
        parts: of the output's height and of its width, from 0 to 1.

    Returns:
        the mean of the absolute weights over the channels; None where the layer has no values, or reads nothing.
    """
    with torch.enable_grad():
        called = _with_values(module, inputs)
        if called is None:
            return None
        output, values = called
        row, column = (min(int(part * size), size - 1) for part, size in zip(parts, output.shape[2:], strict=True))
        (weights,) = torch.autograd.grad(output[0, :, row, column].sum(), values)
    mean = weights[0].float().abs().mean(0).cpu()
    total = mean.sum()
    return mean / total if total > 0 else None


def _with_values(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """Call a layer anew; return its output ``[1, C, H, W]`` before a last projection, and its values, a leaf."""
    if isinstance(module, SpatialReductionAttention):
        return _with_reduced_values(module, *inputs)
    if isinstance(module, PSSA):
        q, k, v = module.project(inputs[0])
        if v is None:
            return None
        v = _leaf(v)
        heads, bias = module.num_heads, module.position
        out = pixel_shift_attention(q, k, v, module.weight, module.neighborhood, num_heads=heads, bias=bias)
        return out if module.neighbor_sum is None else module.neighbor_sum(out), v
    if isinstance(module, WindowAttention2d):
        inputs = module.qkv(inputs[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(3, 1)
    q, k, v = inputs
    v = _leaf(v)
    with _unprojected(module):
        if isinstance(module, WindowAttention2d):
            return WindowAttention.forward(module, q, k, v), v
        return module.forward(q, k, v), v


def _with_reduced_values(module: SpatialReductionAttention, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    prefix, ratio = module.projection.num_prefix_tokens, module.projection.sr_ratio
    q, k, tokens = module.projection(x, size)
    v = _leaf(as_map(tokens[:, prefix:], (-(-size[0] // ratio), -(-size[1] // ratio))))
    with _unprojected(module.attention):
        out = attend_tokens(module.attention, q, k, torch.cat([tokens[:, :prefix].detach(), as_tokens(v)], 1))
    return as_map(out[:, prefix:], size), v


def _leaf(v: Tensor) -> Tensor:
    return v.detach().requires_grad_()


@contextmanager
def _unprojected(path: nn.Module) -> Iterator[None]:
    """Leave out the projection that follows a path's heads, which mixes them."""
    projection = getattr(path, "proj", None)
    if projection is not None:
        setattr(path, "proj", None)  # noqa: B010  not every path has one
    try:
        yield
    finally:
        if projection is not None:
            setattr(path, "proj", projection)  # noqa: B010
