"""Convolutions and folded ACmix whose weights are laid out for oneDNN once, not at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.acmix_forms import GroupedACmix
from convattn.ops._abi import float_table
from convattn.ops._dispatch import needs_standard_operators
from convattn.ops._prepared import Prepared
from convattn.ops.acmix import native
from convattn.ops.acmix.inputs import AcmixInputs


class Packed(nn.Module):
    """What the modules with packed weights share: inference alone, in one dtype on the CPU, in this process.

    They have no parameters, since the layout is the processor's own: a state dict does not hold it.

    Args:
        dtype: of the maps.
        described: what the module is printed with.

    Raises:
        TypeError: in ``forward``, another input than a map ``[B, C, H, W]`` of that dtype on the CPU.
        RuntimeError: in ``forward``, an input that wants a gradient, ``torch.compile`` or an exporter.
    """

    def __init__(self, dtype: torch.dtype, described: str) -> None:
        super().__init__()
        self.dtype, self.described = dtype, described

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        if x.dtype != self.dtype or not x.is_cpu or x.dim() != 4:
            raise TypeError(
                f"packed weights take a {str(self.dtype).removeprefix('torch.')} map [B, C, H, W] on the CPU, got "
                f"{x.dtype}, {list(x.shape)} on {x.device}; optimize without weights='packed'"
            )
        if torch.compiler.is_compiling() or needs_standard_operators() or (torch.is_grad_enabled() and x.requires_grad):
            raise RuntimeError(
                "packed weights are for inference alone, without gradients, torch.compile and exporters; optimize "
                "without weights='packed'"
            )
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The output."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        """Another module with the same weights, which nobody writes to."""
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made.__dict__.update({name: value for name, value in self.__dict__.items() if name not in made.__dict__})
        return made.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be saved.

        Raises:
            TypeError: always.
        """
        raise TypeError("packed weights fit this processor alone and are not saved: save the network before optimize")

    def extra_repr(self) -> str:
        """As the module that it replaces."""
        return self.described


class PackedConvolution(Packed):
    """A convolution for inference on the CPU, its weights in the layout that oneDNN multiplies.

    ``nn.Conv2d`` lays its weights out again at every call; on a small map that takes as long as the products.

    Args:
        convolution: a plain one; see :func:`packs`.
        size: of the inputs that the layout suits best, ``[B, C, H, W]``; other sizes work too.

    Example:
        >>> conv, x = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False), torch.randn(1, 4, 5, 5)
        >>> bool(torch.allclose(PackedConvolution(conv, x.shape)(x), conv(x), atol=1e-6))
        True
    """

    def __init__(self, convolution: nn.Conv2d, size: Sequence[int]) -> None:
        super().__init__(convolution.weight.dtype, convolution.extra_repr())
        conv: Any = convolution
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weights = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.geometry, list(size))

    def compute(self, x: Tensor) -> Tensor:
        """The convolution."""
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weights, self.bias, *self.geometry, "none", [], ""
        )
        return found


def inputs_of(acmix: Any, x: Tensor) -> AcmixInputs:
    """What the one call of a folded ACmix (:func:`is_one_call`) gets of a map."""
    inputs: AcmixInputs = acmix.inputs(x, acmix.fused())
    return inputs


class PackedACmix(Packed):
    """A folded ACmix for inference on the CPU as one call, its projection's weights packed and its tables its own.

    Args:
        acmix: a folded one; see :func:`is_one_call`.
        size: of the inputs that the layout suits best, ``[B, C, H, W]``; other sizes work too.

    Raises:
        ValueError: in ``forward``, a map of other channels.
    """

    def __init__(self, acmix: GroupedACmix, size: Sequence[int]) -> None:
        super().__init__(acmix.projection.weight.dtype, acmix.extra_repr())
        self.form = acmix.form
        inputs = inputs_of(acmix, torch.empty(0, dtype=self.dtype))
        shape = inputs.projection_weight.shape  # of the numbers, the packed ones are all
        own: dict[str, Any] = {"projection_weight": torch.empty(1, dtype=self.dtype).expand(shape)}
        for name in ("projection_bias", "position", "weight", "scale", "bias"):
            table = getattr(inputs, name)
            own[name] = None if table is None else float_table(table.detach().clone())
        self.inputs = inputs._replace(**own)
        if self.dtype == torch.float32:
            packed = native.packed_projection(inputs.projection_weight.detach())
            self.prepare = partial(native.prepare, packed=packed)
        else:
            self.prepare = partial(native.prepare, project=PackedConvolution(acmix.projection, size).compute)
        self.prepared: Prepared | None = None

    def compute(self, x: Tensor) -> Tensor:
        """The operator."""
        prepared = self.prepared
        if prepared is None or not prepared.fits(x):
            inputs = self.inputs._replace(x=x)
            inputs.check()
            prepared = self.prepared = Prepared(self.prepare(inputs), x)
        return prepared(x)


def packs(module: nn.Module) -> bool:
    """Whether it is a convolution that :class:`PackedConvolution` computes: plain, on the CPU, of a dtype that fits."""
    return (
        type(module) is nn.Conv2d
        and not is_hooked(module)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.is_cpu
        and (module.weight.dtype == torch.float32 or (module.weight.dtype == torch.bfloat16 and _has_bfloat16()))
    )


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_one_call(module: nn.Module) -> bool:
    """Whether it is a folded ACmix that one call of the operator computes, with a projection that can be packed."""
    if type(module) is not GroupedACmix or is_hooked(module) or module.fused() is None:
        return False
    return packs(module.projection)


def packed(model: nn.Module, run: Callable[[], object]) -> dict[str, Packed]:
    """What takes the place of the convolutions and folded ACmix that a run of the network calls, by their names.

    Raises:
        RuntimeError: torch was built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("weights='packed' needs a torch with oneDNN, which this one has not; leave it out")
    sizes: dict[nn.Module, Sequence[int]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() == 4:
            sizes[module] = args[0].shape

    operators = {module: module.projection for module in model.modules() if is_one_call(module)}
    projections = set(operators.values())  # a hook on one would be called, and so take the operator apart
    convolutions = [module for module in model.modules() if packs(module) and module not in projections]
    handles = [module.register_forward_pre_hook(note) for module in (*operators, *convolutions)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    made: dict[str, Packed] = {}
    for name, module in model.named_modules():
        if not name or module not in sizes:
            continue
        if module not in operators:
            made[name] = PackedConvolution(module, sizes[module])
        elif not native.not_supported_reasons(inputs_of(module, torch.empty(sizes[module], dtype=module.weight.dtype))):
            made[name] = PackedACmix(module, sizes[module])
    return made
