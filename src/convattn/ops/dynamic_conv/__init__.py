"""``dynamic_conv``: a convolution whose kernel differs from pixel to pixel."""

from __future__ import annotations

from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._checks import check_map, check_same
from convattn.ops.dynamic_conv import eager
from convattn.ops.dynamic_conv.taps import spread_taps, taps
from convattn.ops.neighborhood import Neighborhood

__all__ = ["dynamic_conv", "spread_taps", "taps"]


def dynamic_conv(x: Tensor, kernel: Tensor, nbhd: Neighborhood, *, groups: int = 1) -> Tensor:
    r"""A convolution over explicit offsets whose kernel may differ from pixel to pixel.

    .. math:: y_o(p) = \sum_{d} \sum_{i} K_{o,i,d}(p)\; x_i(p + d)

    X-volution's eq. 9, where K is the sum of a static kernel (:func:`convattn.ops.dynamic_conv.taps`) and one that
    attention finds. The literal form: K alone holds ``C_out * C_in * D`` numbers a pixel, so it proves what an
    operator computes; one that runs often has a cheaper form.

    Args:
        x: ``[B, C_in, H, W]``.
        kernel: K, ``[B, C_out, C_in / groups, D, ceil(H/s), ceil(W/s)]``; 1 in place of B, of both sizes or of all
            of them for a kernel that is the same there.
        nbhd: the D offsets, the stride s and the border rule; a convolution's border is ``"zeros"``.
        groups: that of ``conv2d``; with ``C_in`` of them each channel has a kernel of its own, as in involution.

    Returns:
        ``[B, C_out, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes, dtypes or groups that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, dynamic_conv
        >>> x, nbhd = torch.randn(2, 4, 5, 7), Neighborhood.window(3, border="zeros")
        >>> dynamic_conv(x, torch.randn(2, 8, 4, 9, 5, 7), nbhd).shape
        torch.Size([2, 8, 5, 7])
    """
    check_map("x", x)
    x, kernel = _dispatch.autocast(x, kernel)
    check_same("x", x, "kernel", kernel)
    _check(x, kernel, nbhd, groups)
    return eager.dynamic_conv(x, kernel, nbhd, groups)


def _check(x: Tensor, kernel: Tensor, nbhd: Neighborhood, groups: int) -> None:
    batch, channels, height, width = x.shape
    out = nbhd.output_size(height, width)
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    expected = f"[{batch}, C_out, {channels // groups}, {len(nbhd)}, {out[0]}, {out[1]}]"
    fits = kernel.dim() == 6 and (kernel.shape[2], kernel.shape[3]) == (channels // groups, len(nbhd))
    if not fits or any(kernel.shape[dim] not in (1, size) for dim, size in zip((0, 4, 5), (batch, *out), strict=True)):
        raise ValueError(
            f"kernel must be {expected}, or 1 in place of the first and the last two, got {list(kernel.shape)}"
        )
    if kernel.shape[1] % groups:
        raise ValueError(f"groups must divide the {kernel.shape[1]} outputs of kernel, got {groups}")
