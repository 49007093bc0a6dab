"""``shift`` and ``shift_aggregate``: the static side of ACmix."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from convattn.ops._checks import check_map
from convattn.ops.neighborhood import IntPair, Neighborhood, as_pair
from convattn.ops.shift import eager

ShiftForm: TypeAlias = Literal["tensor", "depthwise", "grouped"]


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    r"""Moves a map: :math:`\tilde f_{i,j} = f_{i + \Delta y,\, j + \Delta x}` (ACmix eq. 4), zero beyond the border.

    Args:
        x: ``[B, C, H, W]``.
        dy: rows, any sign.
        dx: columns, any sign.

    Returns:
        ``[B, C, H, W]``.

    Raises:
        ValueError: ``x`` is not a floating-point map.

    Example:
        >>> import torch
        >>> from convattn.ops import shift
        >>> shift(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 0, 1)
        tensor([[[[2., 3., 0.]]]])
    """
    check_map("x", x)
    return eager.shift(x, dy, dx)


def shift_aggregate(
    x: Tensor,
    kernel_size: IntPair = 3,
    *,
    groups: int = 1,
    stride: IntPair = 1,
    dilation: IntPair = 1,
    form: ShiftForm = "tensor",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Shifts the k² maps of every group, each toward its own tap, and adds them up (ACmix eq. 7 and 8).

    .. math:: g_{ij} = \sum_{p,q} \mathrm{Shift}(\tilde g^{(p,q)}, p - \lfloor k/2 \rfloor, q - \lfloor k/2 \rfloor)

    Args:
        x: ``[B, groups * k², H, W]``; map m of a group belongs to tap ``(m // k, m % k)``.
        kernel_size: k, odd; a pair is (rows, columns).
        groups: how many sets of k² maps there are.
        stride: only every stride-th output is computed.
        dilation: pixels between taps.
        form: ``"tensor"`` moves tensors (fig. 3a); ``"depthwise"`` convolves each map with a fixed one-hot kernel
            and adds (fig. 3b, eq. 14-17); ``"grouped"`` is one convolution with the kernels of ``weight`` (fig. 3c).
        weight: for ``"grouped"``, ``[groups * M, k², k, k]``, M outputs a group; one-hot kernels where None.

    Returns:
        ``[B, groups, ceil(H/s), ceil(W/s)]``, with a ``weight`` ``[B, groups * M, ...]``.

    Raises:
        ValueError: an even kernel, channels that are not ``groups * k²``, a weight of another shape.

    Example:
        >>> import torch
        >>> from convattn.ops import shift_aggregate
        >>> x = torch.randn(1, 9, 5, 5)
        >>> bool(torch.allclose(shift_aggregate(x, 3), shift_aggregate(x, 3, form="grouped"), atol=1e-6))
        True
    """
    check_map("x", x)
    kernel = as_pair(kernel_size, "kernel_size")
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}; {kernel[0] | 1} would do")
    if form not in get_args(ShiftForm):
        raise ValueError(f"form must be one of {get_args(ShiftForm)}, got {form!r}")
    taps = kernel[0] * kernel[1]
    if x.shape[1] != groups * taps:
        raise ValueError(f"x must have groups * k² = {groups} * {taps} channels, got {x.shape[1]}")
    nbhd = Neighborhood.window(kernel, dilation=dilation, stride=stride, border="zeros")
    if form == "tensor":
        return eager.by_tensor_shifts(x, nbhd, groups)
    steps = as_pair(dilation, "dilation")
    if form == "depthwise":
        one_hot = eager.one_hot_kernel(kernel, x).unsqueeze(1).repeat(groups, 1, 1, 1)
        moved = eager.by_convolution(x, one_hot, x.shape[1], nbhd.stride, steps)
        return moved.unflatten(1, (groups, taps)).sum(2)
    if weight is None:
        weight = eager.one_hot_kernel(kernel, x).unsqueeze(0).repeat(groups, 1, 1, 1)
    if weight.dim() != 4 or weight.shape[0] % groups or tuple(weight.shape[1:]) != (taps, *kernel):
        raise ValueError(
            f"weight must be [groups * M, {taps}, {kernel[0]}, {kernel[1]}] with groups={groups}, "
            f"got {list(weight.shape)}"
        )
    return eager.by_convolution(x, weight, groups, nbhd.stride, steps)


def one_hot_kernel(
    kernel_size: IntPair, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The shift kernels of eq. 15 for every tap: ``[k², k, k]``, kernel m is one at tap m and zero elsewhere.

    Example:
        >>> from convattn.ops import one_hot_kernel
        >>> one_hot_kernel(3)[0]
        tensor([[1., 0., 0.],
                [0., 0., 0.],
                [0., 0., 0.]])
    """
    return eager.one_hot_kernel(as_pair(kernel_size, "kernel_size"), torch.empty(0, device=device, dtype=dtype))
