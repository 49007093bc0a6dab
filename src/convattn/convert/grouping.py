"""Which outputs of a convolution share a head channel of an ACmix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS = 2**24


def similar_outputs(conv: nn.Conv2d, num_heads: int) -> Tensor:
    r"""An order of the outputs in which those that read the input alike are together, N by N.

    The N outputs of a head channel share the directions in which they read the input, so the less they differ in them
    the less is lost. Two outputs are alike as far as :math:`\lVert A_a A_b^T \rVert_F^2` is large, A the ``[k², C_in]``
    matrix of an output. Greedy: the output that reads most, then those most like what is in its group already.

    Args:
        conv: of one group.
        num_heads: N.

    Returns:
        ``[C]``: place in the operator -> output of the convolution.

    Example:
        >>> conv = nn.Conv2d(6, 4, 3)
        >>> with torch.no_grad():
        ...     _ = conv.weight[2].copy_(conv.weight[0] * 2)  # outputs 0 and 2 read the same directions
        >>> similar_outputs(conv, 2).view(2, 2).sort().values.tolist()
        [[0, 2], [1, 3]]
    """
    likeness = _likeness(conv.weight.detach().to("cpu", torch.float32))
    free = torch.ones(len(likeness), dtype=torch.bool)
    strength, order = likeness.diagonal().clone(), []
    for _ in range(len(likeness) // num_heads):
        member = int(strength.masked_fill(~free, -1.0).argmax())
        to_group = torch.zeros_like(strength)
        for place in range(num_heads):
            if place:
                member = int((to_group / strength.clamp(min=1e-30).sqrt()).masked_fill(~free, -1.0).argmax())
            free[member] = False
            to_group += likeness[member] / strength[member].clamp(min=1e-30).sqrt()
            order.append(member)
    return torch.tensor(order)


def _likeness(weight: Tensor) -> Tensor:
    """``[C, C]``, a few outputs at a time."""
    outputs, taps = len(weight), weight.shape[2] * weight.shape[3]
    rows = weight.flatten(2).transpose(1, 2).flatten(0, 1)
    step = max(1, _ROWS // (len(rows) * taps))
    parts = []
    for start in range(0, outputs, step):
        some = rows[start * taps : (start + step) * taps]
        parts.append((some @ rows.t()).square_().unflatten(1, (outputs, taps)).sum(2).unflatten(0, (-1, taps)).sum(1))
    return torch.cat(parts)
