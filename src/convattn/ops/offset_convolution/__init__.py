"""``offset_convolution``: a convolution whose taps are any set of offsets."""

from __future__ import annotations

from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._dispatch import Backend, native_offset_reasons
from convattn.ops._operator import Operator
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.offset_convolution import eager, native
from convattn.ops.offset_convolution.inputs import OffsetConvolutionInputs

# training takes the convolutions apart: the gradient has no kernels of its own under either name
operator = Operator(
    "offset_convolution",
    OffsetConvolutionInputs,
    composed=eager.offset_convolution,
    backends={
        "native": Backend(native.offset_convolution, eager.offset_convolution_backward, native_offset_reasons),
        "eager": Backend(eager.offset_convolution, eager.offset_convolution_backward),
    },
)

BLOCK_OUTPUTS = (32, 16, 8)
"""Sizes of a block of outputs that fill whole vectors, best first."""


def offset_convolution(
    x: Tensor,
    weight: Tensor,
    nbhd: Neighborhood,
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""A convolution whose taps are any set of offsets.

    .. math:: y_{gV + v}(p) = b_{gV + v} + \sum_d \sum_c W_{g,\,dC + c,\,v}\, x_c(s p + \delta_d)

    X-volution's static branches merged: 33 offsets of a 9 by 9 window. The CPU kernels compute nothing for zeros beyond
    the border, on a map of 7 by 7 half of the products.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[G, D * C, V]``: the outputs in G blocks of V, the taps of the D offsets one after the other, in the
            order of ``nbhd``. So the weights of a block lie together as they are multiplied, the outputs last;
            ``G = 1`` is the plain matrix. Blocks of 32, if they divide the outputs, suit the CPU kernels
            (:func:`blocks_of_outputs`).
        nbhd: the offsets, the stride s and the border rule; a convolution's is ``"zeros"``.
        bias: ``[G * V]``.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, G * V, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, offset_convolution
        >>> x, conv = torch.randn(1, 4, 5, 7), torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
        >>> weight = conv.weight.permute(2, 3, 1, 0).reshape(1, 9 * 4, 6)
        >>> y = offset_convolution(x, weight, Neighborhood.window(3, border="zeros"))
        >>> bool(torch.allclose(y, conv(x), atol=1e-5))
        True
    """
    return operator(OffsetConvolutionInputs(x, weight, bias, nbhd), backend)


def blocks_of_outputs(weight: Tensor) -> Tensor:
    """``[D, C_in, C_out]`` as :func:`offset_convolution` takes it, in blocks that fill whole vectors.

    Example:
        >>> import torch
        >>> blocks_of_outputs(torch.zeros(33, 4, 96)).shape, blocks_of_outputs(torch.zeros(9, 4, 6)).shape
        (torch.Size([3, 132, 32]), torch.Size([1, 36, 6]))
    """
    outputs = weight.shape[2]
    block = next((size for size in BLOCK_OUTPUTS if outputs % size == 0), outputs)
    return weight.flatten(0, 1).unflatten(1, (-1, block)).transpose(0, 1).contiguous()


def skips_zeros(x: Tensor) -> bool:
    """Whether the implementation for tensors such as this one computes nothing for zeros beyond the border.

    Example:
        >>> import torch
        >>> skips_zeros(torch.zeros(1, dtype=torch.float64))
        False
    """
    return _dispatch.is_wanted("native") and not _dispatch.native_reasons(x)


def products_on(size: tuple[int, int], nbhd: Neighborhood, like: Tensor) -> float:
    """How many offsets are computed for one output of a map of ``size``, in the mean over the map.

    All of them, or without those beyond the border where the implementation for tensors such as ``like`` skips them.

    Example:
        >>> import torch
        >>> products_on((7, 7), Neighborhood.window(3, border="zeros"), torch.zeros(1, dtype=torch.float64))
        9.0
    """
    if not skips_zeros(like):
        return float(len(nbhd))
    rows, columns = (nbhd.shares_on_map(axis, size[axis]) for axis in (0, 1))
    return sum(rows[dy] * columns[dx] for dy, dx in nbhd.offsets)
