"""``acmix`` by the CPU kernels of ``csrc/kernels_window.cpp``.

In float32 they make q, k and v themselves, some rows at a time, and in the backward what these give the input and the
projection. In half precision 1x1 convolutions do, of a few images at a time, so that q, k and v stay in the cache and
fresh memory is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import byref
from typing import TypeAlias

import torch
from torch import Tensor

from convattn.ops import _abi, _dispatch
from convattn.ops._abi import TYPES, Window, call, fast_window, float_table
from convattn.ops._layout import empty_channels_last
from convattn.ops.acmix import composed
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.neighborhood import Neighborhood

CHUNK_BYTES = 10 << 20
"""How much of q, k and v is made at a time; measured on 32 MiB of shared cache."""
BACKWARD_CHUNK_BYTES = 5 << 20
"""The same where their gradients are as large again."""
OWN_PIXELS = 192
"""From how many pixels for each thread on that pays for its copy of the projection's gradient."""
BLOCK = 32
"""Outputs that the kernels' packed weights hold together, ``projection_block`` of ``csrc/projection.h``."""
KEPT_PIXELS = 28
"""Up to how many pixels of a map for each channel training keeps q, k and v."""


def not_supported_reasons(x: AcmixInputs | None = None) -> list[str]:
    """Why the kernels cannot run here, or not on these inputs."""
    if x is None:
        return _dispatch.native_reasons()
    kernel = (x.weight.shape[1], x.weight.shape[2])
    reasons = geometry_reasons(x.x, x.nbhd, x.channels // x.num_heads, kernel, x.dilation)
    return reasons + _dispatch.size_reasons(x.projection_weight)


def geometry_reasons(
    x: Tensor, nbhd: Neighborhood, head_dim: int, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> list[str]:
    """Why the kernels do not serve this window, kernel and input."""
    reasons = _dispatch.native_reasons(x)
    if not fast_window(nbhd, head_dim):
        reasons.append(
            "needs a 3x3, 5x5 or 7x7 window, stride 1 or 2, a reflected border and 4 channels a head or more"
        )
    if kernel_size != (3, 3) or dilation != (1, 1):
        reasons.append(f"needs a 3x3 kernel without dilation, got {list(kernel_size)}, dilation {list(dilation)}")
    return reasons


def keeps_projection(x: AcmixInputs) -> bool:
    """Whether training keeps q, k and v for the backward.

    For few channels they take much memory and little time to make again: about 0.2 ms a MB at 64 channels, 0.3 at 128.
    """
    return x.x.shape[-2] * x.x.shape[-1] <= KEPT_PIXELS * x.channels


def acmix(x: AcmixInputs) -> tuple[Tensor, Tensor]:
    """The output and, if they are to be kept, q, k and v in one map (else an empty tensor)."""
    if not x.keep:
        return prepare(x)(x.x), x.x.new_empty(0)
    if x.x.dtype == torch.float32:
        qkv = empty_channels_last(x.kept_shape, x.x)
        return _from_input(x, kept=qkv)(x.x), qkv
    qkv = _projection(x)(x.x)
    return prepare(x, lambda maps: maps)(qkv), qkv


def prepare(
    x: AcmixInputs, project: Callable[[Tensor], Tensor] | None = None, packed: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The operator as a function of the map, for maps of the shape and dtype of ``x.x``.

    Args:
        x: such inputs.
        project: gives q, k and v of some images in one channels-last map; None: the kernels make them, in half
            precision the 1x1 convolution.
        packed: the projection's weights as :func:`packed_projection` lays them out, for the kernels to make q, k and v
            with; None: they pack them at every call.
    """
    if project is None and x.x.dtype == torch.float32:
        return _from_input(x, packed)
    return _from_projection(x, project or _projection(x))


def packed_projection(weight: Tensor) -> Tensor:
    """``[3C, C_in, 1, 1]`` as the kernels multiply it, ``[ceil(3C / 32), C_in, 32]``, zeros behind the last output.

    Example:
        >>> packed_projection(torch.zeros(48, 16, 1, 1)).shape
        torch.Size([2, 16, 32])
    """
    padded = torch.nn.functional.pad(weight.flatten(1), (0, 0, 0, -weight.shape[0] % BLOCK))
    return padded.unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()


Addresses: TypeAlias = Callable[[], list[int | None]]
"""Where the tables of a call lie, which has to be asked anew for every one."""


def _tables(x: AcmixInputs, *projection: Tensor | None) -> Addresses:
    """The projection's tables, where a kernel computes it too, and the others."""
    copied: list[tuple[Tensor, Tensor]] = []

    def readable(table: Tensor | None, *shape: int) -> Tensor | None:
        if table is None or (table.dtype == torch.float32 and table.is_contiguous() and table.shape == shape):
            return table
        with torch.inference_mode(False):  # a tensor that may be written to in every mode
            copied.append((torch.empty(shape, device="cpu"), table))
        return copied[-1][0]

    tables = [readable(table, *(() if table is None else table.shape)) for table in (*projection, x.position)]
    tables += [readable(x.scale, x.channels), readable(x.weight, *x.weight.shape), readable(x.bias, x.channels)]

    def addresses() -> list[int | None]:
        for own, table in copied:
            own.copy_(table)
        address_of = _abi.address_of
        return [None if table is None else address_of(table) for table in tables]

    return addresses


def _from_input(x: AcmixInputs, packed: Tensor | None = None, kept: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """All of it by the kernels; ``kept``: where q, k and v are left."""
    weight = x.projection_weight if packed is None else packed
    shape, tables = x.output_shape, _tables(x, weight, x.projection_bias)
    window = byref(_window(x, len(x.x), packed=int(packed is not None)))
    forward = _abi.kernel("convattn_acmix_layer_forward", 10)

    def run(given: Tensor) -> Tensor:
        given, address_of = given.contiguous(memory_format=torch.channels_last), _abi.address_of
        out = torch.empty(shape, device="cpu", memory_format=torch.channels_last)
        left = None if kept is None else address_of(kept)
        forward(window, address_of(given), *tables(), left, address_of(out))
        return out

    return run


def _from_projection(x: AcmixInputs, project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What follows q, k and v, which ``project`` makes of some images in one channels-last map."""
    shape, dtype, tables = x.output_shape, x.x.dtype, _tables(x)
    parts = [(part, byref(_window(x, part.stop - part.start, TYPES[dtype]))) for part in _chunks(x, CHUNK_BYTES)]
    whole, forward = len(parts) == 1, _abi.kernel("convattn_acmix_forward", 7)

    def run(given: Tensor) -> Tensor:
        address_of = _abi.address_of
        out = torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
        for part, window in parts:
            maps = project(given if whole else given[part])
            forward(window, address_of(maps), *tables(), address_of(out if whole else out[part]))
            del maps  # before the next are made: two at a time would be fresh memory every time
        return out

    return run


def acmix_backward(grad: Tensor, x: AcmixInputs, out: Tensor, qkv: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of :attr:`AcmixInputs.tensors`."""
    if x.scale.shape[0] != 1:
        return composed.acmix_backward(grad, x, out, qkv)
    grad = grad * (out > 0).to(grad.dtype) if x.activation == "relu" else grad
    if qkv.numel():
        qkv = qkv.contiguous(memory_format=torch.channels_last)  # hooks on saved tensors may lay it out anew
    found = _Gradients(x, grad.contiguous(memory_format=torch.channels_last), qkv)
    # as many whole images for every thread, then the rest, each of which all threads share
    whole = _whole_images(x)
    if whole:
        found.add_whole_images(whole)
    for part in _chunks(x, BACKWARD_CHUNK_BYTES, whole):
        found.add_images(part)
    return found.gradients()


def _whole_images(x: AcmixInputs) -> int:
    """How many images threads do alone, each with a copy of the projection's gradient and memory that it keeps."""
    batch, _, height, width = x.x.shape
    each = batch // torch.get_num_threads()
    small = 12 * x.channels * height * width <= CHUNK_BYTES and each * height * width >= OWN_PIXELS
    return each * torch.get_num_threads() if small and x.x.dtype == torch.float32 else 0


class _Gradients:
    """What the images of a batch add to the gradients, by kernels that sum apart in every thread."""

    def __init__(self, x: AcmixInputs, grad: Tensor, qkv: Tensor) -> None:
        def sums(*shape: int) -> Tensor:
            return torch.zeros((torch.get_num_threads(), *shape), device="cpu", dtype=torch.float64)

        self.x, self.grad, self.qkv = x, grad, qkv
        self.position, self.weight = float_table(x.position), float_table(x.weight)
        self.dposition = None if self.position is None else sums(*self.position.shape)
        self.dweight, self.dscale = sums(*x.weight.shape), sums(1)
        self.dx = empty_channels_last(x.x.shape, x.x)
        self.dprojection: Tensor | None = None
        self.dprojection_bias: Tensor | None = None
        self.dmaps: Tensor | None = None

    def add_whole_images(self, count: int) -> None:
        """The first of the batch, whole images for every thread; their gradients of q, k and v stay in its cache."""
        x, projection, bias = self.x, float_table(self.x.projection_weight), float_table(self.x.projection_bias)
        copies = torch.empty((torch.get_num_threads(), *projection.shape), device="cpu")
        dbias = None if bias is None else torch.zeros((len(copies), len(bias)), device="cpu", dtype=torch.float64)
        maps = x.x.contiguous(memory_format=torch.channels_last)
        tables = projection, bias, self.qkv if self.qkv.numel() else None, self.position, float(x.scale), self.weight
        sums = copies, dbias, self.dposition, self.dweight, self.dscale
        call("convattn_acmix_layer_backward", _window(x, count), maps, *tables, self.grad, self.dx, *sums)
        self._add_projection(copies.sum(0), None if dbias is None else dbias.sum(0).float())

    def add_images(self, part: slice) -> None:
        """Some images, whose gradients of q, k and v lie in memory."""
        x = self.x
        maps = (self.qkv[part] if self.qkv.numel() else _projection(x)(x.x[part])).float()
        if self.dmaps is None:  # the first are the most
            self.dmaps = torch.empty_like(maps, memory_format=torch.channels_last)
        dmaps = self.dmaps[: len(maps)]
        tables = maps, self.position, float(x.scale), self.weight, self.grad[part].float()
        call(
            "convattn_acmix_backward", _window(x, len(maps)), *tables, dmaps, self.dposition, self.dweight, self.dscale
        )
        dpart, *of_projection = composed.project_backward(dmaps.to(x.x.dtype), x, part)
        if len(dpart) == len(self.dx):
            self.dx = dpart
        else:
            self.dx[part] = dpart
        self._add_projection(*of_projection)

    def _add_projection(self, weight: Tensor, bias: Tensor | None) -> None:
        self.dprojection = weight if self.dprojection is None else self.dprojection.add_(weight)
        self.dprojection_bias = bias if self.dprojection_bias is None or bias is None else self.dprojection_bias + bias

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of :attr:`AcmixInputs.tensors`."""
        x, dprojection, dbias = self.x, self.dprojection, self.dprojection_bias
        if dprojection is None:  # of no image
            dprojection = torch.zeros_like(x.projection_weight)
            dbias = None if x.projection_bias is None else torch.zeros_like(x.projection_bias)
        dposition = None if self.dposition is None else self.dposition.sum(0)
        dscale = self.dscale.sum().reshape(1)
        dshift = None if x.bias is None else self.grad.sum((0, 2, 3), dtype=torch.float32)
        return self.dx, dprojection, dbias, dposition, self.dweight.sum(0), dscale, dshift


def _chunks(x: AcmixInputs, size: int, begin: int = 0) -> Iterator[slice]:
    batch, _, height, width = x.x.shape
    fit = size // (12 * x.channels * height * width)
    images = max(1, torch.get_num_threads(), fit)
    return (slice(first, min(first + images, batch)) for first in range(begin, batch, images))


def _projection(x: AcmixInputs) -> Callable[[Tensor], Tensor]:
    weight, bias = x.projection_weight, x.projection_bias

    def project(maps: Tensor) -> Tensor:
        qkv = _dispatch.pointwise_convolution(maps, weight, bias)
        return qkv.contiguous(memory_format=torch.channels_last)

    return project


def _window(x: AcmixInputs, batch: int, type_of_maps: int = 0, packed: int = 0) -> Window:
    relu = int(x.activation == "relu")
    head_dim, stride = x.channels // x.num_heads, x.nbhd.stride[0]
    threads, size = torch.get_num_threads(), x.x.shape[-2:]
    window = fast_window(x.nbhd, head_dim)
    of_maps = x.softmax_scale, type_of_maps, window, x.x.shape[1], packed
    return Window(batch, *size, x.num_heads, head_dim, stride, relu, threads, *of_maps)
