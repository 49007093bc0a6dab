"""Local attention, pixel by pixel (ACmix eq. 9-12 with the weights of eq. 10)."""

import torch
from torch import Tensor

from convattn.ops.aggregate.reference import aggregate
from convattn.ops.correlate.reference import correlate
from convattn.ops.neighborhood import Neighborhood


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    key_offsets: Tensor | None,
    nbhd: Neighborhood,
    num_heads: int,
    scale: float,
) -> Tensor:
    """The logits of every window position written out, a softmax over them, the weighted sum."""
    logits = correlate(q, k, nbhd, num_heads)
    if key_offsets is not None:
        queries = q.unflatten(1, (num_heads, -1))
        vectors = key_offsets.expand(num_heads, -1, -1)
        logits = logits + torch.stack([(queries * r[..., None, None]).sum(2) for r in vectors.unbind(1)], 2)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias[..., None, None]
    return aggregate(logits.softmax(2), v, nbhd)
