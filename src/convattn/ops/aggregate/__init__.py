"""``aggregate``: weighted sums of the values of every pixel's neighbourhood."""

from __future__ import annotations

from torch import Tensor

from convattn.ops import _dispatch, _products
from convattn.ops._products import AggregateInputs
from convattn.ops.aggregate import eager, native, triton
from convattn.ops.neighborhood import Neighborhood

_dispatch.register_products("aggregate", native.aggregate, triton.aggregate, eager.aggregate)


def aggregate(weights: Tensor, v: Tensor, nbhd: Neighborhood, *, backend: str = "auto") -> Tensor:
    r"""Weighted sums of the values of every pixel's neighbourhood.

    .. math:: o_{c,ij} = \sum_m w^{(n(c))}_{m,ij}\; v_{c,\,(i s + \Delta y_m,\, j s + \Delta x_m)}

    ACmix's eq. 12 with the weights given: a softmax makes it attention, a constant makes it a depthwise convolution.

    Args:
        weights: ``[B, N, K, ceil(H/s), ceil(W/s)]``; head n weighs the channels ``n * C/N`` to ``(n + 1) * C/N``.
        v: values ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``v`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, aggregate
        >>> mean = torch.full((1, 1, 9, 5, 5), 1 / 9)
        >>> bool(torch.allclose(aggregate(mean, torch.ones(1, 4, 5, 5), Neighborhood.window(3)), torch.ones(1)))
        True
    """
    return _products.aggregate(AggregateInputs(weights, v, nbhd), backend)
