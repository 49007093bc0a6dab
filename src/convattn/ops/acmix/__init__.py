"""``acmix``: the whole ACmix operator, projection, attention, convolution, mix and what follows, as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._dispatch import Backend
from convattn.ops._operator import Operator
from convattn.ops._recording import are_sizes_free
from convattn.ops.acmix import composed, native, portable, triton
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.neighborhood import IntPair, Neighborhood, as_pair

operator = Operator(
    "acmix",
    AcmixInputs,
    composed=composed.acmix,
    portable=portable.acmix,
    backends={
        "native": Backend(native.acmix, native.acmix_backward, native.not_supported_reasons, native.prepare),
        "triton": Backend(triton.acmix, triton.acmix_backward, triton.not_supported_reasons),
        "eager": Backend(composed.acmix_and_kept, composed.acmix_backward),
    },
)

Activation: TypeAlias = Literal["none", "relu"]


def acmix(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    nbhd: Neighborhood,
    num_heads: int,
    dilation: IntPair = 1,
    activation: Activation = "none",
    backend: str = "auto",
) -> Tensor:
    r"""ACmix with its convolution path folded into one grouped convolution.

    .. math:: o = \mathrm{act}\bigl(b + F_{conv}(q, k, v) + \gamma\, \mathrm{attend}(q, k - p, v)\bigr),
        \qquad [q; k; v] = W x + b_p

    ACmix's eq. 9-13, fig. 2c. Nothing of the attention is kept for the gradient.

    Args:
        x: ``[B, C_in, H, W]``.
        projection_weight: W, ``[3C, C_in, 1, 1]``.
        projection_bias: ``[3C]``.
        position: ``[C/N, 2]``: p at a pixel is this times its coordinates (x, y), which run from -1 to 1; the same
            for every head.
        weight: ``[3N, kh, kw, N, C/N]``: output channel ``g * N + o`` of the convolution path sums
            ``weight[t, :, :, o, g]`` over channel g of map t of q, k and v, which have N maps each. Zeros lie beyond
            the border.
        scale: γ, ``[1]`` or, for every output channel, ``[C]``.
        bias: b, ``[C]``.
        nbhd: the attention's offsets and border, and the stride of both paths.
        num_heads: N.
        dilation: distance between the taps of the convolution path.
        activation: ``"none"`` or ``"relu"``, last.
        backend: ``"auto"`` or the name of one (:func:`convattn.ops.backends`).

    Returns:
        ``[B, C, ceil(H/s), ceil(W/s)]``, channels_last where ``x`` is.

    Raises:
        ValueError: shapes, dtypes or heads that do not fit, or a backend that cannot run.

    Example:
        >>> import torch
        >>> from convattn.ops import Neighborhood, acmix
        >>> x, projection = torch.randn(1, 8, 5, 7), torch.randn(3 * 8, 8, 1, 1)
        >>> weight, scale = torch.randn(3 * 2, 3, 3, 2, 4), torch.ones(1)
        >>> acmix(x, projection, None, None, weight, scale, nbhd=Neighborhood.window(7), num_heads=2).shape
        torch.Size([1, 8, 5, 7])
    """
    tables = projection_weight, projection_bias, position, weight, scale, bias
    return apply(AcmixInputs(x, *tables, nbhd, num_heads, as_pair(dilation, "dilation"), activation), backend)


def apply(inputs: AcmixInputs, backend: str = "auto") -> Tensor:
    """:func:`acmix` of the same as one."""
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors)
    # whether to keep them depends on the size of the map
    recorded = training and not _dispatch.needs_standard_operators() and not are_sizes_free()
    if recorded and _keeps_projection(inputs):
        inputs = inputs._replace(keep=True)
    return operator(inputs, backend)


def fused_acmix(
    x: Tensor,
    projection_weight: Tensor,
    projection_bias: Tensor | None,
    position: Tensor | None,
    folded: Callable[[], tuple[Tensor, Tensor]],
    *,
    nbhd: Neighborhood,
    num_heads: int,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor | None:
    """:func:`acmix` by a kernel of its own; None where there is none for these inputs on this machine.

    Args:
        x: and all that follows, as there.
        projection_weight: W.
        projection_bias: its bias.
        position: p.
        folded: gives ``weight`` and ``scale``. It is called if there is a kernel.
        nbhd: the attention's neighbourhood.
        num_heads: N.
        kernel_size: of ``weight``.
        dilation: of the convolution path.
    """
    head_dim = projection_weight.shape[0] // 3 // num_heads
    by_native = _dispatch.is_wanted("native") and not native.geometry_reasons(x, nbhd, head_dim, kernel_size, dilation)
    if _dispatch.needs_standard_operators() or not (by_native or _runs_on_gpu(x, nbhd, head_dim)):
        return None
    tables = projection_weight, projection_bias, position, *folded()
    return acmix(x, *tables, nbhd=nbhd, num_heads=num_heads, dilation=dilation)


def _runs_on_gpu(x: Tensor, nbhd: Neighborhood, head_dim: int) -> bool:
    reasons = _dispatch.triton_reasons(x)
    return _dispatch.is_wanted("triton") and not reasons and not triton.geometry_reasons(x, nbhd, head_dim)


def _keeps_projection(inputs: AcmixInputs) -> bool:
    """Whether training keeps q, k and v: always on a GPU, whose memory is fast to write."""
    if not native.not_supported_reasons(inputs):
        return native.keeps_projection(inputs)
    return not triton.not_supported_reasons(inputs)
