"""Every operator with its neighbours gathered into one tensor: the answer that a fuzzed case is measured against.

In float64 it is the truth, in another dtype what plain torch makes of it. Much faster than the references' loops, with
which ``test_fuzz.py`` compares it, and made of nothing of the library's.
"""

import torch
from torch import Tensor


def sources(offsets, stride, size, border):
    """For every offset and output along one axis, the pixel that is read: ``[K, outputs]``; -1 reads zero."""
    outputs = (size - 1) // stride + 1
    at = torch.tensor(offsets)[:, None] + torch.arange(outputs) * stride
    if border == "zeros":
        return torch.where((at >= 0) & (at < size), at, -1)
    if border == "replicate":
        return at.clamp(0, size - 1)
    if size == 1:
        return torch.zeros_like(at)
    period = 2 * (size - 1)
    return torch.minimum(at % period, period - at % period)


def places(nbhd, height, width):
    """The pixel of the flattened map that each offset of an output reads, ``[K, Ho, Wo]``, and if there is one."""
    rows, columns = zip(*nbhd.offsets, strict=True)
    y = sources(rows, nbhd.stride[0], height, nbhd.border)[:, :, None]
    x = sources(columns, nbhd.stride[1], width, nbhd.border)[:, None]
    return (y * width + x).clamp(min=0), (y >= 0) & (x >= 0)


def neighbours(x, nbhd):
    """``[B, C, H, W]`` -> ``[B, C, K, Ho, Wo]``."""
    index, inside = places(nbhd, *x.shape[-2:])
    taken = x.flatten(2).index_select(2, index.flatten()).unflatten(2, index.shape)
    return torch.where(inside, taken, 0)


def centres(x, nbhd):
    """The pixels that windows are centred at."""
    return x[..., :: nbhd.stride[0], :: nbhd.stride[1]]


def correlate(q, k, nbhd, heads):
    """Dot products of queries and keys."""
    products = q[:, :, None] * neighbours(k, nbhd)
    return products.unflatten(1, (heads, -1)).sum(2)


def aggregate(weights, v, nbhd):
    """Weighted sums of values."""
    by_head = neighbours(v, nbhd).unflatten(1, (weights.shape[1], -1))
    return (weights[:, :, None] * by_head).sum(3).flatten(1, 2)


def scatter(weights, u, nbhd, size):
    """The adjoint of ``aggregate``."""
    index, inside = places(nbhd, *size)
    terms = weights[:, :, None] * u.unflatten(1, (weights.shape[1], -1))[:, :, :, None]
    terms = torch.where(inside, terms, 0).flatten(3)
    out = terms.new_zeros((*terms.shape[:3], size[0] * size[1])).index_add(3, index.flatten(), terms)
    return out.unflatten(3, size).flatten(1, 2)


def attend(q, k, v, nbhd, heads, scale, bias=None, key_offsets=None):
    """Softmax attention."""
    logits = correlate(q, k, nbhd, heads)
    if key_offsets is not None:
        vectors = key_offsets.expand(heads, -1, -1)
        logits = logits + torch.einsum("bndhw,nkd->bnkhw", q.unflatten(1, (heads, -1)), vectors)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias[..., None, None]
    return aggregate(logits.softmax(2), v, nbhd)


def group_convolution(x, weight, bias, nbhd):
    """A sum over T maps of d channels, group by group; ``nbhd`` is that of the kernel."""
    seen = neighbours(x, nbhd).unflatten(1, (weight.shape[0], weight.shape[4]))
    out = torch.einsum("btgkhw,tkog->bgohw", seen, weight.flatten(1, 2)).flatten(1, 2)
    return out if bias is None else out + bias[:, None, None]


def acmix(t: dict[str, Tensor], nbhd, kernel, heads):
    """The operator before its activation; ``kernel`` is the convolution path's neighbourhood."""
    x, position = t["x"], t.get("position")
    height, width = x.shape[-2:]
    qkv = torch.einsum("bchw,oc->bohw", x, t["projection_weight"].flatten(1))
    if "projection_bias" in t:
        qkv = qkv + t["projection_bias"][:, None, None]
    q, k, v = qkv.chunk(3, 1)
    if position is not None:
        xs, ys = (torch.linspace(-1, 1, size, dtype=x.dtype) for size in (width, height))
        p = position[:, :1, None] * xs + position[:, 1:, None] * ys[:, None]
        k = (k.unflatten(1, (heads, -1)) - p).flatten(1, 2)
    attention = attend(centres(q, nbhd), k, v, nbhd, heads, (k.shape[1] // heads) ** -0.5)
    return attention * t["scale"][:, None, None] + group_convolution(qkv, t["weight"], t.get("bias"), kernel)


def offset_convolution(x, weight, bias, nbhd):
    """A convolution over offsets, in blocks of outputs."""
    by_tap = weight.unflatten(1, (len(nbhd), x.shape[1]))
    out = torch.einsum("bckhw,gkcv->bgvhw", neighbours(x, nbhd), by_tap).flatten(1, 2)
    return out if bias is None else out + bias[:, None, None]


def pixel_shift_attention(q, k, v, weight, bias, nbhd, heads):
    """Attention without a softmax."""
    head_dim = k.shape[1] // heads
    similarity = correlate(q, k, nbhd, heads) * head_dim**-0.5
    if bias is not None:
        similarity = similarity + bias[..., None, None]
    terms = similarity.repeat_interleave(head_dim, 1) * weight.t()[..., None, None]
    return (terms if v is None else terms * neighbours(v, nbhd)).sum(2)


def dynamic_conv(x, kernel, nbhd, groups):
    """A convolution with a kernel for every pixel."""
    seen = neighbours(x, nbhd).unflatten(1, (groups, -1))[:, :, None]
    return (kernel.unflatten(1, (groups, -1)) * seen).sum((3, 4)).flatten(1, 2)


def shift_aggregate(x, weight, nbhd, groups):
    """The sum of shifted maps; ``nbhd`` is that of the kernel."""
    seen = neighbours(x, nbhd).unflatten(1, (groups, -1))
    if weight is None:
        return seen.diagonal(dim1=2, dim2=3).sum(-1)
    return torch.einsum("bgmkhw,gomk->bgohw", seen, weight.unflatten(0, (groups, -1)).flatten(-2)).flatten(1, 2)
