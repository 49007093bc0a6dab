"""Convolutions and folded ACmix in the form that one device multiplies, made once and not at every call.

On a CPU the weights are laid out for oneDNN. On a GPU a 1x1 convolution in half precision is a product of matrices,
which adds the bias as it stores (cuDNN leaves that to a slow pass of its own), and ACmix keeps the convolution of the
input that its convolution path and projection compose to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers._checks import is_hooked
from convattn.layers.acmix_forms import GroupedACmix
from convattn.ops._abi import float_table
from convattn.ops._dispatch import needs_standard_operators
from convattn.ops._prepared import Prepared
from convattn.ops.acmix import native, triton
from convattn.ops.acmix.inputs import AcmixInputs


class Packed(nn.Module):
    """What the modules with packed weights share: inference alone, in one dtype on one device, in this process.

    They have no parameters, since the layout is the processor's own: a state dict does not hold it.

    Args:
        weight: of the module that it replaces; maps are of its dtype and on its device.
        described: what the module is printed with.

    Raises:
        TypeError: in ``forward``, another input than a map ``[B, C, H, W]`` of that dtype on that device.
        RuntimeError: in ``forward``, an input that wants a gradient, ``torch.compile`` or an exporter.
    """

    def __init__(self, weight: Tensor, described: str) -> None:
        super().__init__()
        self.dtype, self.device, self.described = weight.dtype, weight.device, described

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C, Ho, Wo]``."""
        if x.dtype != self.dtype or x.device != self.device or x.dim() != 4:
            where = "the CPU" if self.device.type == "cpu" else self.device
            raise TypeError(
                f"packed weights take a {str(self.dtype).removeprefix('torch.')} map [B, C, H, W] on {where}, got "
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
        super().__init__(convolution.weight, convolution.extra_repr())
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


class PackedProduct(Packed):
    """A 1x1 convolution for inference as a product of matrices, for half precision on a GPU.

    Args:
        convolution: a plain one; see :func:`packs`.

    Example:
        >>> conv, x = nn.Conv2d(4, 8, 1, stride=2).requires_grad_(False), torch.randn(1, 4, 5, 5)
        >>> bool(torch.allclose(PackedProduct(conv)(x), conv(x), atol=1e-6))
        True
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution.weight, convolution.extra_repr())
        self.weight = convolution.weight.detach().flatten(1).clone()
        self.bias = None if convolution.bias is None else convolution.bias.detach().clone()
        self.stride = convolution.stride

    def compute(self, x: Tensor) -> Tensor:
        """The convolution."""
        read = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        # of rows with gaps torch multiplies each on its own, and adds the bias after
        return F.linear(read.contiguous(), self.weight, self.bias).permute(0, 3, 1, 2)


def inputs_of(acmix: Any, x: Tensor) -> AcmixInputs:
    """What the one call of a folded ACmix (:func:`is_one_call`) gets of a map."""
    inputs: AcmixInputs = acmix.inputs(x, acmix.fused())
    return inputs


class PackedACmix(Packed):
    """A folded ACmix for inference as one call, its tables its own and its weights in the form that is multiplied.

    Args:
        acmix: a folded one; see :func:`is_one_call`.
        size: of the inputs that the layout suits best, ``[B, C, H, W]``; other sizes work too.

    Raises:
        ValueError: in ``forward``, a map of other channels.
    """

    def __init__(self, acmix: GroupedACmix, size: Sequence[int]) -> None:
        super().__init__(acmix.projection.weight, acmix.extra_repr())
        self.form = acmix.form
        inputs = inputs_of(acmix, torch.empty(0, dtype=self.dtype, device=self.device))
        own: dict[str, Any] = {name: None if t is None else t.detach().clone() for name, t in _tables(inputs).items()}
        self.prepare: Callable[[AcmixInputs], Callable[[Tensor], Tensor]]
        if self.device.type == "cuda":
            self.prepare = triton.prepare
        else:
            shape = inputs.projection_weight.shape  # of the numbers, the packed ones are all
            own = {name: None if t is None else float_table(t) for name, t in own.items()}
            own["projection_weight"] = torch.empty(1, dtype=self.dtype).expand(shape)
            self.prepare = self._native(acmix.projection, size)
        self.inputs = inputs._replace(**own)
        self.prepared: Prepared | None = None

    def _native(
        self, projection: nn.Conv2d, size: Sequence[int]
    ) -> Callable[[AcmixInputs], Callable[[Tensor], Tensor]]:
        if self.dtype == torch.float32:
            return partial(native.prepare, packed=native.packed_projection(projection.weight.detach()))
        return partial(native.prepare, project=PackedConvolution(projection, size).compute)

    def compute(self, x: Tensor) -> Tensor:
        """The operator."""
        prepared = self.prepared
        if prepared is None or not prepared.fits(x):
            inputs = self.inputs._replace(x=x)
            inputs.check()
            prepared = self.prepared = Prepared(self.prepare(inputs), x)
        return prepared(x)


def _tables(inputs: AcmixInputs) -> dict[str, Tensor | None]:
    """All its tensors but the map, by name."""
    return dict(zip(inputs._fields[1 : inputs.num_tensors], inputs.tensors[1:], strict=True))


def packs(module: nn.Module) -> bool:
    """Whether it is a convolution that packed weights compute: plain, of a dtype and on a device that fit."""
    if type(module) is not nn.Conv2d or is_hooked(module):
        return False
    dtype, place = module.weight.dtype, module.weight.device.type
    if place == "cuda":
        pointwise = module.kernel_size == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "valid", "same")
        return pointwise and dtype in (torch.float16, torch.bfloat16)
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return plain and place == "cpu" and (dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bfloat16()))


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_one_call(module: nn.Module) -> bool:
    """Whether it is a folded ACmix that one call of the operator computes, with a projection that can be packed."""
    if type(module) is not GroupedACmix or is_hooked(module) or module.fused() is None:
        return False
    return module.projection.weight.is_cuda or packs(module.projection)


def packed(model: nn.Module, run: Callable[[], object]) -> dict[str, Packed]:
    """What takes the place of the convolutions and folded ACmix that a run of the network calls, by their names.

    Raises:
        RuntimeError: torch was built without oneDNN.
    """
    on_cpu = any(p.is_cpu for p in model.parameters())
    if on_cpu and not torch.backends.mkldnn.is_available():
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
            on_gpu = module.weight.is_cuda
            made[name] = PackedProduct(module) if on_gpu else PackedConvolution(module, sizes[module])
        elif _is_served(module, sizes[module]):
            made[name] = PackedACmix(module, sizes[module])
    return made


def _is_served(acmix: GroupedACmix, size: Sequence[int]) -> bool:
    """Whether the kernels of its device compute a folded ACmix on maps of this size."""
    like = acmix.projection.weight
    inputs = inputs_of(acmix, torch.empty(size, dtype=like.dtype, device=like.device))
    return not (triton if like.is_cuda else native).not_supported_reasons(inputs)
