r"""A convolution written into ACmix's convolution path, as well as the path can hold it.

Head channel g of an ACmix makes the N outputs :math:`c = gN + o` from its own 3N rows of the projection. Its fully
connected layer, one ``[k², 3N]`` matrix that all head channels share, mixes these rows into k² directions of the
input, and the free kernels read those. So the convolution path is the convolution

.. math:: K_{c, i, y, x} = \sum_{m=1}^{k^2} \mathrm{kernel}_{c, m, y, x}
    \Bigl(\sum_{t=1}^{3N} \mathrm{fc}_{m, t}\, P_{td + g, i}\Bigr)

and the ``[C_in, N k²]`` matrix of a head channel has at most the rank ``min(k², 3N)``. Any matrix of that rank is
reached with any fully connected layer of full rank, since the rows of P belong to g alone. The best one, for the
squared error of the weights, is the truncated singular value decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn

from convattn.layers import ACmix


def path_rank(kernel_size: tuple[int, int], num_heads: int) -> int:
    """How many directions of the input the N outputs of a head channel can read: ``min(k², 3N)``.

    Example:
        >>> [path_rank((3, 3), heads) for heads in (1, 2, 3, 4, 8)]
        [3, 6, 9, 9, 9]
    """
    return min(kernel_size[0] * kernel_size[1], 3 * num_heads)


def fitting_heads(channels: int, kernel_size: tuple[int, int]) -> int:
    """The number of heads that divides the channels and leaves the convolution path most of a kernel.

    Every output has 3 directions of its k² taps while 3N is at most k², and shares them with N - 1 others: the largest
    such N is the best. Beyond, the k² rows of the fully connected layer are the limit, and more outputs share them.

    Example:
        >>> fitting_heads(64, (3, 3)), fitting_heads(96, (3, 3)), fitting_heads(96, (7, 7))
        (2, 3, 16)
    """
    most = max(1, kernel_size[0] * kernel_size[1] // 3)
    return max(heads for heads in range(1, min(most, channels) + 1) if channels % heads == 0)


@dataclass(frozen=True)
class Factors:
    """The truncated singular value decomposition of every head channel's ``[C_in, N k²]`` matrix.

    Args:
        directions: ``[d, 3N, C_in]``: the strongest directions of the input, each by the root of its singular value.
        readings: ``[d, rank, N, kh, kw]``: what the outputs' taps read of the first of them, likewise.
        relative_error: what is lost, the Frobenius norm over that of the kernel.
    """

    directions: Tensor
    readings: Tensor
    relative_error: float


def factorize(conv: nn.Conv2d, num_heads: int, order: Tensor | None = None) -> Factors:
    """Decompose a convolution's kernel by the head channels of an ACmix.

    Args:
        conv: of any number of groups.
        num_heads: N, which divides its outputs.
        order: output of the operator -> output of the convolution; None: the same.
    """
    weight = conv.weight.detach().to("cpu", torch.float64)
    inputs = _inputs_of(conv) if order is None else None
    if inputs is None or not _is_aligned(conv, num_heads):
        weight, inputs = _dense(weight, conv), torch.arange(conv.in_channels).expand(conv.out_channels, -1)
    if order is not None:
        weight, inputs = weight[order.cpu()], inputs[order.cpu()]
    matrices, columns = _by_head_channel(weight, inputs, num_heads)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rank, kept = (
        min(path_rank((weight.shape[2], weight.shape[3]), num_heads), values.shape[1]),
        min(3 * num_heads, values.shape[1]),
    )
    roots = values.sqrt()
    directions = _fresh_directions(len(matrices), 3 * num_heads, conv.in_channels, values)
    known = (left * roots[:, None])[..., :kept].transpose(1, 2)
    known = torch.zeros_like(directions[:, :kept]).scatter_(2, columns[:, None].expand(-1, kept, -1), known)
    is_read = values[:, :kept, None] > 1e-9 * values.amax()
    directions[:, :kept] = torch.where(is_read, known, directions[:, :kept])
    readings = torch.where(is_read[:, :rank], (roots[..., None] * right)[:, :rank], 0.0)
    readings = readings.unflatten(2, (num_heads, *weight.shape[2:]))
    total = values.square().sum()
    lost = values[:, rank:].square().sum() / total if total > 0 else torch.zeros(())
    return Factors(directions, readings, float(lost.sqrt()))


def _inputs_of(conv: nn.Conv2d) -> Tensor:
    """The input channels that every output reads, ``[C, C_in / groups]``."""
    by_group = torch.arange(conv.in_channels).view(conv.groups, -1)
    return by_group.repeat_interleave(conv.out_channels // conv.groups, 0)


def _is_aligned(conv: nn.Conv2d, num_heads: int) -> bool:
    """Whether the outputs of a head channel lie in one of the convolution's groups or fill whole ones."""
    outputs = conv.out_channels // conv.groups
    return outputs % num_heads == 0 or num_heads % outputs == 0


def _dense(weight: Tensor, conv: nn.Conv2d) -> Tensor:
    full = weight.new_zeros(conv.out_channels, conv.in_channels, *weight.shape[2:])
    index = _inputs_of(conv)[:, :, None, None].expand_as(weight)
    return full.scatter_(1, index, weight)


def _by_head_channel(weight: Tensor, inputs: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """The matrices ``[d, rows, N k²]`` and the input channel of every row, ``[d, rows]``."""
    by_head_channel = weight.unflatten(0, (-1, num_heads))
    columns = inputs.unflatten(0, (-1, num_heads))
    if bool((columns == columns[:, :1]).all()):
        return by_head_channel.permute(0, 2, 1, 3, 4).flatten(2), columns[:, 0]
    # whole groups: their inputs side by side, every output in the rows of its own
    groups, place = [], []
    for of_outputs, kernels in zip(columns, by_head_channel, strict=True):
        rows, row_of = of_outputs.unique(return_inverse=True)
        matrix = kernels.new_zeros(num_heads, len(rows), *kernels.shape[2:])
        groups.append(matrix.scatter_(1, row_of[:, :, None, None].expand_as(kernels), kernels))
        place.append(rows)
    return torch.stack(groups).permute(0, 2, 1, 3, 4).flatten(2), torch.stack(place)


def _fresh_directions(count: int, rows: int, in_channels: int, values: Tensor) -> Tensor:
    """Random directions as strong as the kernel's: where it has fewer than the path, the rest can still learn."""
    strength = values.mean().sqrt() if values.any() else torch.ones(())
    scale = strength / in_channels**0.5
    return torch.randn(count, rows, in_channels, dtype=torch.float64) * scale


def _cosines(size: int) -> Tensor:
    """The orthonormal matrix of the discrete cosine transform: every row has a part in every column."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(pi / size * (place[None] + 0.5) * place[:, None]) * (2 / size) ** 0.5
    matrix[0] *= 0.5**0.5
    return matrix


@torch.no_grad()
def write_convolution(layer: ACmix, conv: nn.Conv2d, order: Tensor | None = None) -> float:
    r"""Start an ACmix as the convolution: α = 0, β = 1, and the convolution path the best approximation.

    The fully connected layer gets orthonormal rows (or columns, where 3N < k²), so that with the rotation B of the 3N
    maps, :math:`P = B^T D` and :math:`\mathrm{fc} = F B`, no direction is scaled: :math:`\mathrm{fc}\, P = F D`. The
    rotation spreads the directions D over q, k and v and their heads.

    Args:
        layer: with ``mix="free"`` and free kernels, of the convolution's size, stride and dilation.
        conv: whose bias is not in what is written: the path has none that is constant at the border.
        order: output of the operator -> output of the convolution; None: the same.

    Returns:
        The relative error of the kernel, in the Frobenius norm.

    Example:
        >>> conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        >>> layer = ACmix(8, 16)
        >>> write_convolution(layer, conv) < 1e-6  # 8 inputs: no more directions than the path can hold
        True
        >>> x = torch.randn(1, 8, 7, 7)
        >>> bool(torch.allclose(layer(x), conv(x), atol=1e-5))
        True
    """
    path = layer.convolution
    if path.kernel is None or not path.has_kernel_by_output or layer.mix.alpha is None or layer.mix.beta is None:
        raise ValueError("a convolution is written into an ACmix with free kernels (shift='learnable') and mix='free'")
    factors = factorize(conv, path.num_heads, order)
    maps, taps = path.maps, path.kernel_size[0] * path.kernel_size[1]
    rotation = _cosines(maps)
    reading = torch.eye(taps, maps, dtype=torch.float64) if taps <= maps else _cosines(taps)[:, :maps]
    projection = torch.einsum("jt,gji->tgi", rotation, factors.directions)
    rank = factors.readings.shape[1]
    kernel = torch.einsum("mj,gjoyx->gomyx", reading[:, :rank], factors.readings)
    layer.projection.weight.copy_(projection.flatten(0, 1)[..., None, None])
    if layer.projection.bias is not None:
        layer.projection.bias.zero_()
    path.fc.copy_(reading @ rotation)
    path.kernel.copy_(kernel.flatten(0, 1))
    layer.mix.alpha.zero_()
    layer.mix.beta.fill_(1.0)
    return factors.relative_error
