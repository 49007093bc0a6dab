"""Second derivatives of the operators whose first ones are operators of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def second_derivatives(
    forward: Callable[..., Tensor], saved: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Differentiates the gradient of a form that is made of differentiable operators.

    The saved tensors keep their history, so any order works.

    Args:
        forward: the inputs -> the output.
        saved: the output's gradient, then the inputs; None for an input that is left out.
        grads: of the gradient of each input.

    Returns:
        For each of ``saved`` its gradient.
    """
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [
            None if x is None else x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in saved
        ]
        grad, *inputs = aliases
        present = [x for x in inputs if x is not None]
        first = torch.autograd.grad(forward(*inputs), present, grad, create_graph=True)
        weights = [g for g, x in zip(grads, inputs, strict=True) if x is not None]
        pairs = [(f, w) for f, w in zip(first, weights, strict=True) if f.requires_grad]
        outputs, factors = [f for f, _ in pairs], [w for _, w in pairs]
        wanted = [x for x in aliases if x is not None]
        second = iter(torch.autograd.grad(outputs, wanted, factors, create_graph=keep_graph, allow_unused=True))
    return [None if x is None else next(second) for x in aliases]
