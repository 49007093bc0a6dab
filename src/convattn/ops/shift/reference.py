"""Shifts and their sum, pixel by pixel (ACmix eq. 4, 7, 8)."""

import torch
from torch import Tensor


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """Eq. 4: ``y[i, j] = x[i + dy, j + dx]``, zero where that lies outside."""
    height, width = x.shape[-2:]
    zero = torch.zeros_like(x[..., 0, 0])
    rows = [
        [x[..., i + dy, j + dx] if 0 <= i + dy < height and 0 <= j + dx < width else zero for j in range(width)]
        for i in range(height)
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def shift_aggregate(
    x: Tensor,
    weight: Tensor | None,
    kernel_size: tuple[int, int],
    groups: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Eq. 7 and 8 where ``weight`` is None, else the sum over groups, maps and taps of fig. 3c written out."""
    (kernel_h, kernel_w), (step_h, step_w) = kernel_size, dilation
    taps = [
        ((p - kernel_h // 2) * step_h, (q - kernel_w // 2) * step_w) for p in range(kernel_h) for q in range(kernel_w)
    ]
    maps = x.unflatten(1, (groups, len(taps)))
    if weight is None:
        total = sum(shift(maps[:, :, m], *tap) for m, tap in enumerate(taps))
    else:
        kernel = weight.unflatten(0, (groups, -1)).flatten(-2)
        total = torch.zeros((), dtype=x.dtype)
        for t, tap in enumerate(taps):
            moved = shift(maps, *tap)
            total = total + torch.einsum("bgmhw,gom->bgohw", moved, kernel[..., t])
        total = total.flatten(1, 2)
    return total[..., :: stride[0], :: stride[1]]  # type: ignore[index]
