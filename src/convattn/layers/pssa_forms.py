"""PSSA for inference: q, k and v in whichever exact form is cheapest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from convattn.layers.folding import exact, make_form
from convattn.layers.offset_convolution import OffsetConvolution
from convattn.ops import Neighborhood

if TYPE_CHECKING:
    from convattn.layers.pssa import PSSA

ProjectionForm: TypeAlias = Literal["joint", "split", "tied"]


def projection_multiply_adds(layer: PSSA) -> dict[ProjectionForm, int]:
    """What q, k and v cost for one output pixel, in the forms that are exact for an operator.

    Example:
        >>> from convattn import PSSA
        >>> projection_multiply_adds(PSSA(8, 16, stride=2))
        {'joint': 1536, 'split': 1152}
        >>> projection_multiply_adds(PSSA(16, 16))
        {'joint': 768, 'tied': 512}
    """
    inputs = layer.stride[0] * layer.stride[1]
    queries = 1 if layer.neighborhood.stride == layer.stride else inputs  # a sum over neighbours reads them everywhere
    one = layer.in_channels * layer.out_channels
    values = 1 if layer.reading == "value" else 0
    counted: dict[ProjectionForm, int] = {"joint": (2 + values) * one * inputs}
    if inputs > queries:
        counted["split"] = one * queries + (1 + values) * one * inputs
    if layer.num_heads == 1 and layer.in_channels == layer.out_channels:
        counted["tied"] = one * queries + values * one * inputs
    return counted


def fold_projection(layer: PSSA) -> FoldedProjection:
    """The form of the fewest multiply-adds."""
    return make_form("auto", lambda form: FoldedProjection(layer, form), projection_multiply_adds(layer))


class FoldedProjection(nn.Module):
    """What :meth:`PSSA.reparameterize` leaves of the projection: q, k and v in one of three exact forms.

    Args:
        layer: the trained operator; its projection is copied.
        form: ``"joint"``, ``"split"`` or ``"tied"``.
    """

    def __init__(self, layer: PSSA, form: ProjectionForm) -> None:
        super().__init__()
        self.form, self.channels, self.reading = form, layer.out_channels, layer.reading
        self.counted = projection_multiply_adds(layer)[form]
        stride, like = layer.neighborhood.stride, layer.projection.weight
        query, key, *value = exact(like).flatten(1).split(self.channels)
        if form == "tied":
            query, rest = key.t() @ query, value
        else:
            rest = [key, *value]
        if form == "joint" or stride == (1, 1):
            query, rest, stride = torch.cat([query, *rest]), [], (1, 1)
        at = (Neighborhood(((0, 0),), step, "zeros") for step in (stride, (1, 1)))
        self.query = OffsetConvolution(query[..., None], None, next(at), like=like)
        self.rest = OffsetConvolution(torch.cat(rest)[..., None], None, next(at), like=like) if rest else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``[B, C_in, H, W]`` -> q at the output's resolution, k and v."""
        q, *maps = self.query(x).split(self.channels, 1)
        if self.rest is not None:
            maps = self.rest(x).split(self.channels, 1)
        if self.form == "tied":
            maps = [x.to(q.dtype), *maps]  # autocast leaves x as it is
        return q, maps[0], maps[1] if self.reading == "value" else None

    def value_weight(self) -> Tensor:
        """The matrix from x to v, ``[C, C_in]`` in float64."""
        return (self.query if self.rest is None else self.rest).matrix()[-self.channels :]

    def extra_repr(self) -> str:
        """The form and its cost."""
        return f"form={self.form!r}, multiply_adds={self.counted} for an output pixel"
