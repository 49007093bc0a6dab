"""``scatter``: the adjoint of ``aggregate``."""

from __future__ import annotations

from torch import Tensor

from convattn.ops import _dispatch, _products
from convattn.ops._products import ScatterInputs
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.scatter import eager, native, triton

_dispatch.register_products("scatter", native.scatter, triton.scatter, eager.scatter)


def scatter(weights: Tensor, u: Tensor, nbhd: Neighborhood, size: tuple[int, int], *, backend: str = "auto") -> Tensor:
    r"""Add every output pixel's map to the pixels of its neighbourhood: the adjoint of :func:`aggregate`.

    .. math:: g_{c,ab} = \sum_{(ij,m)\,:\,(i s + \Delta y_m,\, j s + \Delta x_m) \mapsto ab}
        w^{(n(c))}_{m,ij}\; u_{c,ij}

    ``<scatter(w, u), v> == <u, aggregate(w, v)>``. With :func:`correlate` the three are closed under differentiation,
    which is why gradients of any order exist.

    Args:
        weights: ``[B, N, K, ceil(H/s), ceil(W/s)]``.
        u: ``[B, C, ceil(H/s), ceil(W/s)]``.
        nbhd: the K offsets, the stride s and the border rule.
        size: ``(H, W)`` of the map that the neighbourhood reads.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, H, W]``, channels_last where ``u`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, scatter
        >>> scatter(torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 2), Neighborhood(((0, 1),)), (1, 2))
        tensor([[[[1., 1.]]]])
    """
    return _products.scatter(ScatterInputs(weights, u, nbhd, size), backend)
