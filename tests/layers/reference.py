"""The ACmix operator as the issue of its authors' code reads, written out in float64 with every window gathered."""

import numpy as np
import torch
import torch.nn.functional as F


def reflected(size, reach):
    return torch.from_numpy(
        np.pad(np.arange(size), reach, mode="reflect") if size > 1 else np.zeros(2 * reach + 1, int)
    )


def windows(x, kernel, stride, dilation):
    """``[B, C, H, W]`` -> ``[B, C, k*k, Ho, Wo]``, the border reflected."""
    reach = kernel // 2 * dilation
    x = x[:, :, reflected(x.shape[2], reach)][..., reflected(x.shape[3], reach)]
    unfolded = F.unfold(x, kernel, dilation=dilation, stride=stride)
    size = [(n - 2 * reach - 1) // stride + 1 for n in x.shape[-2:]]
    return unfolded.view(*x.shape[:2], kernel * kernel, *size)


def acmix(x, state, *, heads, kernel=3, attention_kernel=7, stride=1, dilation=1):
    """Logits q_i . (k_j + p_i - p_j), softmax, sum; fc over [q; k; v]; grouped convolution; the mix."""
    batch, _, height, width = x.shape
    qkv = F.conv2d(x, state["projection.weight"], state["projection.bias"])
    q, k, v = (t.unflatten(1, (heads, -1)).flatten(0, 1) for t in qkv.chunk(3, 1))
    head_dim = q.shape[1]
    xs = torch.linspace(-1, 1, width, dtype=x.dtype).expand(height, width)
    ys = torch.linspace(-1, 1, height, dtype=x.dtype)[:, None].expand(height, width)
    p = torch.einsum("ca,ahw->chw", state["attention.position.weight"], torch.stack([xs, ys]))[None]
    centre = (q * head_dim**-0.5)[..., ::stride, ::stride]
    keys, values, places = (windows(t, attention_kernel, stride, dilation) for t in (k, v, p))
    logits = (centre[:, :, None] * (keys + p[..., ::stride, ::stride][:, :, None] - places)).sum(1)
    attention = (logits.softmax(1)[:, None] * values).sum(2).unflatten(0, (batch, heads)).flatten(1, 2)
    by_head = qkv.view(batch, 3 * heads, head_dim * height, width)
    maps = F.conv2d(by_head, state["convolution.fc"][..., None, None])
    maps = maps.view(batch, -1, head_dim, height, width).transpose(1, 2).flatten(1, 2)
    convolution = F.conv2d(
        maps,
        state["convolution.kernel"],
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=head_dim,
    )
    return state["mix.alpha"] * attention + state["mix.beta"] * convolution
