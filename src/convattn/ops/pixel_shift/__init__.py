"""``pixel_shift_attention``: X-volution's attention, linear in the map and without a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._dispatch import Backend, native_offset_reasons, triton_reasons
from convattn.ops._operator import Operator
from convattn.ops.neighborhood import Neighborhood
from convattn.ops.pixel_shift import composed, eager, native, portable, triton
from convattn.ops.pixel_shift.inputs import PixelShiftInputs

operator = Operator(
    "pixel_shift_attention",
    PixelShiftInputs,
    composed=composed.pixel_shift_attention,
    portable=portable.pixel_shift_attention,
    backends={
        "native": Backend(native.pixel_shift_attention, native.pixel_shift_attention_backward, native_offset_reasons),
        "triton": Backend(triton.pixel_shift_attention, triton.pixel_shift_attention_backward, triton_reasons),
        "eager": Backend(eager.pixel_shift_attention, eager.pixel_shift_attention_backward),
    },
)


def pixel_shift_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    weight: Tensor,
    nbhd: Neighborhood,
    *,
    num_heads: int = 1,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Pixel-shift self-attention: similarities with shifted keys weigh shifted values, without a softmax.

    .. math:: y_c(p) = \sum_d w_{d,c}\, \bigl(s^{(n)}_d(p) + b^{(n)}_d\bigr)\, v_c(p + d), \qquad
        s^{(n)}_d(p) = \frac{1}{\sqrt{C/N}} \sum_{c' \in n} q_{c'}(p)\, k_{c'}(p + d),

    n the head of c: X-volution's eq. 7. The gradient keeps nothing but the inputs, and neither pass holds a map for
    each offset; gradients of any order exist.

    Args:
        q: queries at the output resolution ``[B, C, ceil(H/s), ceil(W/s)]``.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``; None leaves the factor v out, as section 6.1.2 reads.
        weight: w, ``[D, C]``, a number for each offset and channel.
        nbhd: the D offsets, the stride s and the border rule; the paper's are :meth:`Neighborhood.directions`.
        num_heads: N; head n owns the channels ``n * C/N`` to ``(n + 1) * C/N``. With ``num_heads=C`` queries and
            keys are multiplied element by element.
        bias: b, a number for each head and offset, ``[N, D]``.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``q`` is. Under ``torch.autocast`` to float16 it is
        computed and returned in float32, as torch does with products of many factors: three maps multiplied leave
        float16's range.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, pixel_shift_attention
        >>> q = k = v = torch.randn(2, 8, 5, 7)
        >>> pixel_shift_attention(q, k, v, torch.ones(24, 8), Neighborhood.directions(), num_heads=8).shape
        torch.Size([2, 8, 5, 7])
    """
    q, k, v = _dispatch.autocast(q, k, v)
    if _dispatch.is_autocast_to(torch.float16, q):
        q, k, v = q.float(), k.float(), None if v is None else v.float()
    return operator.apply(PixelShiftInputs(q, k, v, weight, bias, nbhd, num_heads), backend)
