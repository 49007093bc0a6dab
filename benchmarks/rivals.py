"""Other ways to compute the operators: by copies of every neighbour, FlexAttention, NATTEN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.backends import Absent
from benchmarks.cases import OpCase
from convattn.ops import Neighborhood


def copies(x: Tensor, nbhd: Neighborhood, heads: int) -> Tensor:
    """Every neighbour of every pixel: ``[B, C, H, W]`` -> ``[B, N, C/N, K, Ho, Wo]``, as unfolding makes them."""
    views = nbhd.views(nbhd.pad(x), x.shape[-2], x.shape[-1])
    return torch.stack(list(views), 2).unflatten(1, (heads, -1))


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, heads: int) -> Tensor:
    """:func:`convattn.ops.correlate` over copies."""
    return (q.unflatten(1, (heads, -1)).unsqueeze(3) * copies(k, nbhd, heads)).sum(2)


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood) -> Tensor:
    """:func:`convattn.ops.aggregate` over copies."""
    return (weights.unsqueeze(2) * copies(v, nbhd, weights.shape[1])).sum(3).flatten(1, 2)


def pixel_shift(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, nbhd: Neighborhood, heads: int) -> Tensor:
    """:func:`convattn.ops.pixel_shift_attention` over copies."""
    scale = (q.shape[1] // heads) ** -0.5
    by_channel = correlate(q * scale, k, nbhd, heads).repeat_interleave(q.shape[1] // heads, 1)
    return aggregate(by_channel * weight.t()[..., None, None], v, nbhd)


def attend(q: Tensor, k: Tensor, v: Tensor, nbhd: Neighborhood, heads: int) -> Tensor:
    """:func:`convattn.ops.attend` over copies.

    Example:
        >>> q = k = v = torch.randn(1, 4, 5, 5)
        >>> attend(q, k, v, Neighborhood.window(3), 2).shape
        torch.Size([1, 4, 5, 5])
    """
    scale = (q.shape[1] // heads) ** -0.5
    return aggregate(correlate(q * scale, k, nbhd, heads).softmax(2), v, nbhd)


def flex_attention(case: OpCase, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``torch.nn.attention.flex_attention``, compiled; a key that the border reflects k times gets log k added."""
    from torch.nn.attention import flex_attention as flex

    size, out, heads = case.size, case.output_size, case.heads
    times = multiplicities(case.neighborhood, size, out).to(device)
    logs = times.log()
    near = times > 0
    block = flex.create_block_mask(
        lambda b, h, i, j: near[i // out, j // size] & near[i % out, j % size],
        B=None,
        H=None,
        Q_LEN=out * out,
        KV_LEN=size * size,
        device=device,
    )
    compiled = torch.compile(flex.flex_attention)

    def by_count(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + logs[i // out, j // size] + logs[i % out, j % size]

    def tokens(x: Tensor) -> Tensor:
        return x.unflatten(1, (heads, -1)).flatten(3).transpose(2, 3).contiguous()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = compiled(tokens(q), tokens(k), tokens(v), score_mod=by_count, block_mask=block)
        return found.transpose(2, 3).flatten(1, 2).unflatten(2, (out, out))

    return run


def multiplicities(nbhd: Neighborhood, size: int, out: int) -> Tensor:
    """How often the window of each output reads each pixel along one axis, ``[out, size]``.

    Example:
        >>> multiplicities(Neighborhood.window(3), 3, 3)
        tensor([[1., 2., 0.],
                [1., 1., 1.],
                [0., 2., 1.]])
    """
    steps = sorted({dy for dy, _ in nbhd.offsets})
    counts = torch.zeros(out, size)
    for i in range(out):
        for step in steps:
            source = nbhd.source(i * nbhd.stride[0] + step, size)
            if source is not None:
                counts[i, source] += 1
    return counts


def natten_attention(case: OpCase, window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``natten.na2d``: windows of the border are moved inside, in place of reflecting.

    Raises:
        Absent: not installed, or the case is not one of its kind.
    """
    try:
        import natten
    except ImportError as error:
        raise Absent("not installed") from error
    if case.stride != 1:
        raise Absent("its strided form has other keys")
    heads = case.heads

    def last(x: Tensor) -> Tensor:
        return x.unflatten(1, (heads, -1)).permute(0, 3, 4, 1, 2)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = natten.na2d(last(q), last(k), last(v), kernel_size=window)
        return found.flatten(3).permute(0, 3, 1, 2)

    return run
