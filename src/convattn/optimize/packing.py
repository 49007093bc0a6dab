"""Convolutions whose weights are laid out for oneDNN once, not at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.ops._dispatch import needs_standard_operators


class PackedConvolution(nn.Module):
    """A convolution for inference in float32 on the CPU, its weights in the layout that oneDNN multiplies.

    ``nn.Conv2d`` lays its weights out again at every call; on a small map that takes as long as the products. This
    module has no parameters, since the layout is the processor's own: a state dict does not hold it.

    Args:
        convolution: a plain one; see :func:`packs`.
        size: of the inputs that the layout suits best, ``[B, C, H, W]``; other sizes work too.

    Raises:
        TypeError: in ``forward``, another input than a float32 map ``[B, C, H, W]`` on the CPU.
        RuntimeError: in ``forward``, an input that wants a gradient, ``torch.compile`` or an exporter.

    Example:
        >>> conv, x = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False), torch.randn(1, 4, 5, 5)
        >>> bool(torch.allclose(PackedConvolution(conv, x.shape)(x), conv(x), atol=1e-6))
        True
    """

    def __init__(self, convolution: nn.Conv2d, size: Sequence[int]) -> None:
        super().__init__()
        conv: Any = convolution
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weights = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.geometry, list(size))
        self.described = convolution.extra_repr()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        if x.dtype != torch.float32 or not x.is_cpu or x.dim() != 4:
            raise TypeError(
                f"packed weights take a float32 map [B, C, H, W] on the CPU, got {x.dtype}, {list(x.shape)} on "
                f"{x.device}; optimize without weights='packed'"
            )
        if torch.compiler.is_compiling() or needs_standard_operators() or (torch.is_grad_enabled() and x.requires_grad):
            raise RuntimeError(
                "packed weights are for inference alone, without gradients, torch.compile and exporters; optimize "
                "without weights='packed'"
            )
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weights, self.bias, *self.geometry, "none", [], ""
        )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedConvolution:
        """Another module with the same weights, which nobody writes to."""
        made = PackedConvolution.__new__(PackedConvolution)
        nn.Module.__init__(made)
        made.bias, made.geometry, made.weights, made.described = self.bias, self.geometry, self.weights, self.described
        return made.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be saved.

        Raises:
            TypeError: always.
        """
        raise TypeError("packed weights fit this processor alone and are not saved: save the network before optimize")

    def extra_repr(self) -> str:
        """The convolution's."""
        return self.described


def packs(module: nn.Module) -> bool:
    """Whether it is a convolution that :class:`PackedConvolution` computes: plain, of float32 on the CPU."""
    return (
        type(module) is nn.Conv2d
        and not is_hooked(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.is_cpu
        and module.weight.dtype == torch.float32
    )


def packed(model: nn.Module, run: Callable[[], object]) -> dict[str, PackedConvolution]:
    """What takes the place of the convolutions that a run of the network calls, by their names.

    Raises:
        RuntimeError: torch was built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("weights='packed' needs a torch with oneDNN, which this one has not; leave it out")
    sizes: dict[nn.Module, Sequence[int]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() == 4:
            sizes[module] = args[0].shape

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if packs(module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: PackedConvolution(conv, sizes[conv]) for name, conv in model.named_modules() if name and conv in sizes
    }
