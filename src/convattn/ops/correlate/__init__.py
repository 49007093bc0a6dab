"""``correlate``: dot products of every query with the keys of its neighbourhood."""

from __future__ import annotations

from torch import Tensor

from convattn.ops import _dispatch, _products
from convattn.ops._products import CorrelateInputs
from convattn.ops.correlate import eager, native, triton
from convattn.ops.neighborhood import Neighborhood

_dispatch.register_products("correlate", native.correlate, triton.correlate, eager.correlate)


def correlate(q: Tensor, k: Tensor, nbhd: Neighborhood, *, num_heads: int = 1, backend: str = "auto") -> Tensor:
    r"""Dot products of every query with the keys of its neighbourhood.

    .. math:: l^{(n)}_{ij,m} = \sum_{c \in n} q_{c,ij}\; k_{c,\,(i s + \Delta y_m,\, j s + \Delta x_m)}

    the inner part of ACmix's eq. 10, before scale and softmax.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``. With ``num_heads=C`` the products
            are element-wise.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, N, K, ceil(H/s), ceil(W/s)]``.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, correlate
        >>> ones = torch.ones(1, 4, 5, 5)
        >>> correlate(ones, ones, Neighborhood.window(3), num_heads=2)[0, 0, 0, 0, 0]
        tensor(2.)
    """
    return _products.correlate(CorrelateInputs(q, k, nbhd, num_heads), backend)
