"""``group_convolution``: ACmix's convolution path as one convolution of the maps as they lie."""

from __future__ import annotations

from torch import Tensor

from convattn.ops._dispatch import Backend
from convattn.ops._operator import Operator
from convattn.ops.group_convolution import eager, native, portable
from convattn.ops.group_convolution.inputs import GroupConvolutionInputs
from convattn.ops.neighborhood import IntPair, as_pair

operator = Operator(
    "group_convolution",
    GroupConvolutionInputs,
    composed=eager.group_convolution,
    portable=portable.group_convolution,
    backends={
        "native": Backend(native.group_convolution, native.group_convolution_backward, native.not_supported_reasons),
        "eager": Backend(eager.group_convolution, eager.group_convolution_backward),
    },
)


def group_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    dilation: IntPair = 1,
    backend: str = "auto",
) -> Tensor:
    r"""ACmix's convolution path with its fully connected layer folded in: d convolutions, one for each head channel.

    .. math:: o_{gN + n} = b_{gN + n} + \sum_{t} W_{t,\cdot,\cdot,n,g} * x_{td + g}

    A grouped convolution whose groups are spread over the input, since q, k and v lie head by head, and that leaves
    its outputs group by group (ACmix fig. 2c: fc, shift and sum as one). Zeros lie beyond the border.

    Args:
        x: T maps of d channels, ``[B, T * d, H, W]``.
        weight: ``[T, kh, kw, N, d]``, odd kernel sizes.
        bias: ``[N * d]``.
        stride: distance between outputs.
        dilation: distance between taps.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, N * d, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes or dtypes that do not fit, an even kernel size, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import group_convolution
        >>> group_convolution(torch.randn(1, 6 * 8, 5, 7), torch.randn(6, 3, 3, 2, 8)).shape
        torch.Size([1, 16, 5, 7])
    """
    steps = (*as_pair(stride, "stride"), *as_pair(dilation, "dilation"))
    return operator(GroupConvolutionInputs(x, weight, bias, steps), backend)
