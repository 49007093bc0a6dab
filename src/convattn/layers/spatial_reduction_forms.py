"""ACmix over PVT's attention for inference: α in the attention's last layer, β in the convolution path."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from convattn.layers.folding import PASS_SAVED, check_folds, exact, make_form, parameter_like, scaled
from convattn.layers.global_attention import GlobalAttention
from convattn.layers.path_mix import PathMix
from convattn.layers.shift_convolution import ShiftConvolution
from convattn.layers.tokens import as_map, as_tokens
from convattn.ops import group_convolution
from convattn.ops._recording import size_of
from convattn.ops.group_convolution.enlarged import enlarged_group_convolution

if TYPE_CHECKING:
    from convattn.layers.spatial_reduction import SpatialReductionACmix

ReducedForm: TypeAlias = Literal["grouped", "unfused"]
ReducedFormChoice: TypeAlias = Literal["auto", "grouped", "unfused"]
REDUCED_FORMS: tuple[ReducedForm, ...] = get_args(ReducedForm)


def multiply_adds(path: ShiftConvolution, sr_ratio: int) -> dict[ReducedForm, int]:
    """What either form costs for one square of ``sr_ratio`` x ``sr_ratio`` pixels: projections, convolution path.

    Example:
        >>> multiply_adds(ShiftConvolution(64, num_heads=1), 8)
        {'grouped': 380928, 'unfused': 640128}
    """
    pixels, heads, taps = sr_ratio * sr_ratio, path.num_heads, path.kernel_size[0] * path.kernel_size[1]
    channels = heads * path.head_dim
    projected = channels * channels * (pixels + 2)
    connected = taps * path.head_dim * heads * (pixels + 2)
    return {
        "grouped": projected + 3 * heads * channels * taps * pixels,
        "unfused": projected + connected + path.shift_multiply_adds(1) * pixels,
    }


def fold_reduced(layer: SpatialReductionACmix, form: ReducedFormChoice) -> ReparameterizedReduction:
    """The inference form of an operator, by name or the cheapest.

    Raises:
        TypeError: the convolution path was replaced by something that does not fold.
    """
    path = layer.convolution
    if type(path) is not ShiftConvolution or path.fc_bias is not None:
        raise TypeError(f"reparameterize folds a convolution path that is a ShiftConvolution without bias, got {path}")
    check_folds(path, layer.mix)
    counted = multiply_adds(path, layer.projection.sr_ratio)
    return make_form(form, lambda name: ReparameterizedReduction(layer, path, name), counted, enough=PASS_SAVED)


def attend_tokens(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tokens ``[B, T, C]`` through an attention path over maps."""
    return as_tokens(attention(*(as_map(tokens, (size_of(tokens, 1), 1)) for tokens in (q, k, v))))


def both_paths(operator: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """What the operator and its inference form compute of their four parts."""
    projection = operator.projection
    q, k, v = projection(x, size)
    convolution = projection.full_tokens(operator.convolution(*projection.full_maps(q, k, v, size)), size)
    mixed: Tensor = operator.mix(attend_tokens(operator.attention, q, k, v), convolution)
    return mixed


class ReparameterizedReduction(nn.Module):
    """What :meth:`SpatialReductionACmix.reparameterize` leaves of the operator.

    Args:
        layer: the trained operator; its projection and its attention are taken over.
        path: its convolution path.
        form: ``"grouped"`` or ``"unfused"``.
    """

    def __init__(self, layer: SpatialReductionACmix, path: ShiftConvolution, form: ReducedForm) -> None:
        super().__init__()
        self.form = form
        self.projection, self.attention = layer.projection, layer.attention
        alpha, beta = layer.mix.rates()
        scaled_path = path.scaled_copy(beta)
        self.convolution = (
            ReducedConvolution(scaled_path, self.projection.sr_ratio) if form == "grouped" else scaled_path
        )
        proj = self.attention.proj if type(self.attention) is GlobalAttention else None
        self.mix = PathMix("sum" if proj is not None else "alpha")
        if proj is not None:
            proj.weight, proj.bias = scaled(proj.weight, alpha), scaled(proj.bias, alpha)
        else:
            self.mix.alpha = parameter_like(exact(alpha), self.projection.q.weight)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``[B, p + H W, C]`` and ``(H, W)`` -> ``[B, p + H W, C]``."""
        return both_paths(self, x, size)

    def extra_repr(self) -> str:
        """The form."""
        return f"form={self.form!r}"


class ReducedConvolution(nn.Module):
    """The convolution path of :class:`SpatialReductionACmix` for inference, from q, k and v maps.

    The fully connected layer and the k x k kernels are one grouped convolution of q's N maps and one of k's and v's
    2N, enlarged (:func:`convattn.ops.group_convolution`); of all 3N where r is 1.

    Args:
        path: the convolution path, β in it.
        sr_ratio: r.

    Example:
        >>> import torch
        >>> path = ShiftConvolution(8, num_heads=2)
        >>> q, k, v = torch.randn(1, 8, 6, 4), torch.randn(1, 8, 3, 2), torch.randn(1, 8, 3, 2)
        >>> bool(torch.allclose(ReducedConvolution(path, 2)(q, k, v), path(q, k, v), atol=1e-6))
        True
    """

    def __init__(self, path: ShiftConvolution, sr_ratio: int) -> None:
        super().__init__()
        self.sr_ratio = sr_ratio
        exact_path = copy.deepcopy(path).to(exact(path.fc).device, torch.float64)
        folded, self.kernel_size = exact_path.folded_weight(), path.kernel_size
        # three dimensions: a module's conversion to channels_last refuses parameters of five
        of_q, of_kv = (part.flatten(0, 2) for part in folded.split((path.num_heads, 2 * path.num_heads)))
        self.weight_q, self.weight_kv = parameter_like(of_q, path.fc), parameter_like(of_kv, path.fc)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q ``[B, C, r h, r w]``, k and v ``[B, C, h, w]`` -> ``[B, C, r h, r w]``."""
        weights = self.weight_q, self.weight_kv
        of_q, of_kv = (weight.unflatten(0, (-1, *self.kernel_size)).to(q.dtype) for weight in weights)
        if self.sr_ratio == 1:
            return group_convolution(torch.cat([q, k, v], 1), torch.cat([of_q, of_kv]))
        return group_convolution(q, of_q) + enlarged_group_convolution(torch.cat([k, v], 1), of_kv, self.sr_ratio)

    def extra_repr(self) -> str:
        """What it holds."""
        return f"weight_q={list(self.weight_q.shape)}, weight_kv={list(self.weight_kv.shape)}"
