"""``attend``: softmax attention of every query over its neighbourhood."""

from __future__ import annotations

from torch import Tensor

from convattn.ops._checks import check_heads, check_map
from convattn.ops._dispatch import Backend, native_offset_reasons, triton_reasons
from convattn.ops._operator import Operator
from convattn.ops.attend import eager, native, offsets, portable, triton
from convattn.ops.attend.inputs import AttendInputs
from convattn.ops.neighborhood import Neighborhood

operator = Operator(
    "attend",
    AttendInputs,
    composed=offsets.attend,
    portable=portable.attend,
    backends={
        "native": Backend(native.attend, native.attend_backward, native_offset_reasons),
        "triton": Backend(triton.attend, triton.attend_backward, triton_reasons),
        "eager": Backend(eager.attend, eager.attend_backward),
    },
)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    nbhd: Neighborhood,
    *,
    num_heads: int = 1,
    bias: Tensor | None = None,
    key_offsets: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Softmax attention of every query over its neighbourhood, which is never materialised.

    .. math:: o_i = \sum_m \mathrm{softmax}_m\bigl(\mathrm{scale}\; q_i \cdot (k_{i+m} + r_m) + b_m\bigr)\; v_{i+m}

    ACmix's eq. 9-12. The gradient keeps nothing but the inputs; gradients of any order exist. Beyond a ``"zeros"``
    border key and value are zero, and the position still counts in the softmax.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``.
        nbhd: the K offsets, the stride s and the border rule.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``.
        bias: a number b for each offset, ``[N, K]`` or ``[1, K]``.
        key_offsets: a vector r for each offset, ``[N, K, C/N]`` or ``[1, K, C/N]``: the relative positions of
            stand-alone self-attention.
        scale: ``(C/N) ** -0.5`` where None.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``q`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, attend
        >>> q = k = v = torch.randn(2, 8, 5, 7)
        >>> attend(q, k, v, Neighborhood.window(7), num_heads=4).shape
        torch.Size([2, 8, 5, 7])
    """
    if scale is None:
        check_map("k", k)
        check_heads(k.shape[1], num_heads)
        scale = (k.shape[1] // num_heads) ** -0.5
    return operator(AttendInputs(q, k, v, bias, key_offsets, nbhd, num_heads, float(scale)), backend)
