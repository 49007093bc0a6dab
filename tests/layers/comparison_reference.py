"""The operators that the papers compare with, read off their definitions: every window and every pair written out."""

import torch
import torch.nn.functional as F

from tests.layers.reference import windows


def local_relation(x, state, composability, *, groups, kernel, stride, dilation):
    """Softmax over the window of the composability plus the prior, x summed, then the channel transformation."""
    q, k = F.conv2d(x, state["projection.weight"], state["projection.bias"]).chunk(2, 1)
    q, keys = q[:, :, None, ::stride, ::stride], windows(k, kernel, stride, dilation)
    logits = {
        "squared_difference": lambda: -((q - keys) ** 2),
        "absolute_difference": lambda: -(q - keys).abs(),
        "product": lambda: q * keys,
    }[composability]()
    reach = kernel // 2
    places = [[(m // kernel - reach) / reach, (m % kernel - reach) / reach] for m in range(kernel * kernel)]
    hidden = F.linear(torch.tensor(places, dtype=x.dtype), state["prior.hidden.weight"], state["prior.hidden.bias"])
    prior = F.linear(hidden.relu(), state["prior.out.weight"], state["prior.out.bias"])
    weights = (logits + prior.t()[None, :, :, None, None]).softmax(2)
    values = windows(x, kernel, stride, dilation).unflatten(1, (groups, -1))
    return F.conv2d((weights[:, :, None] * values).sum(3).flatten(1, 2), state["transform.weight"])


def involution(x, state, *, groups, kernel, stride, dilation):
    """In evaluation: the running statistics of the batch norm."""
    reach = kernel // 2 * dilation
    pooled = F.avg_pool2d(x, stride, stride, ceil_mode=True)
    hidden = F.conv2d(pooled, state["reduce.0.weight"])
    statistics = (state["reduce.1.running_mean"], state["reduce.1.running_var"])
    hidden = F.batch_norm(hidden, *statistics, state["reduce.1.weight"], state["reduce.1.bias"]).relu()
    kernels = F.conv2d(hidden, state["span.weight"], state["span.bias"]).unflatten(1, (groups, -1))
    v = F.conv2d(x, state["projection.weight"]) if "projection.weight" in state else x
    values = F.unfold(v, kernel, dilation, reach, stride).unflatten(1, (groups, -1, kernel * kernel))
    return (values * kernels.flatten(3)[:, :, None]).sum(3).flatten(1, 2).unflatten(2, pooled.shape[-2:])


def global_attention(q, k, v, rows, columns, *, heads):
    """Pixel by pixel; the tables' middle is distance 0 and their ends are all that lies farther."""
    q, k, v = (t.unflatten(1, (heads, -1)) for t in (q, k, v))
    q = q * q.shape[2] ** -0.5
    height, width = q.shape[-2:]
    out = torch.zeros_like(v)
    for y in range(height):
        for x in range(width):
            vectors = k
            if rows is not None:
                dy, dx = torch.arange(height) - y, torch.arange(width) - x
                tall, wide = len(rows) // 2, len(columns) // 2
                r = rows[dy.clamp(-tall, tall) + tall].t()[:, :, None]
                vectors = k + r + columns[dx.clamp(-wide, wide) + wide].t()[:, None, :]
            logits = (q[..., y, x, None, None] * vectors).sum(2).flatten(2)
            weights = logits.softmax(2).unflatten(2, (height, width))
            out[..., y, x] = (weights[:, :, None] * v).sum((3, 4))
    return out.flatten(1, 2)


def augmented(x, state, layer, *, stride, dilation):
    """A convolution and global attention side by side; the attention reads the pooled map."""
    pooled = x if stride == 1 else F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    sizes = [layer.key_channels, layer.key_channels, layer.value_channels]
    q, k, v = F.conv2d(pooled, state["projection.weight"]).split(sizes, 1)
    maps = global_attention(q, k, v, state.get("rows"), state.get("columns"), heads=layer.num_heads)
    attention = F.conv2d(maps, state["out.weight"])
    if "convolution.weight" not in state:
        return attention
    return torch.cat([F.conv2d(x, state["convolution.weight"], None, stride, dilation, dilation), attention], 1)


def bottleneck(x, state, *, heads, stride):
    """Global attention, then means over stride by stride cells."""
    q, k, v = F.conv2d(x, state["qkv.weight"]).chunk(3, 1)
    out = global_attention(q, k, v, state["pos_embed.height_rel"], state["pos_embed.width_rel"], heads=heads)
    return F.avg_pool2d(out, stride, stride, ceil_mode=True)
