"""Inputs and references that every operator's contract test draws on."""

from dataclasses import dataclass

import torch

from convattn import ops
from convattn.ops import Neighborhood
from convattn.ops.aggregate import reference as aggregate_reference
from convattn.ops.attend import reference as attend_reference
from convattn.ops.correlate import reference as correlate_reference
from convattn.ops.scatter import reference as scatter_reference

BATCH, HEADS, HEAD_DIM = 2, 2, 3


@dataclass(frozen=True)
class Geometry:
    """A map size and a neighbourhood, with an id that a person can read."""

    height: int
    width: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    dilation: int | tuple[int, int] = 1
    border: str = "reflect"

    @property
    def neighborhood(self):
        return Neighborhood.window(self.kernel, dilation=self.dilation, stride=self.stride, border=self.border)

    def __str__(self):
        return f"{self.height}x{self.width}-k{self.kernel}-s{self.stride}-d{self.dilation}-{self.border}"


GEOMETRIES = [
    Geometry(1, 1, 7),
    Geometry(2, 3, 7, stride=2, border="zeros"),
    Geometry(1, 7, 5, dilation=2),
    Geometry(5, 4, 3, border="replicate"),
    Geometry(7, 6, 5, stride=2),
    Geometry(9, 5, 3, stride=2, dilation=3),
    Geometry(8, 9, (1, 3), stride=(1, 2), dilation=(1, 2), border="zeros"),
    Geometry(6, 7, 4),
    Geometry(17, 10, 3),
    Geometry(18, 1, (2, 1), dilation=(2, 1)),
]


def lay_out(x, layout):
    """The same numbers in another memory layout."""
    if x.dim() != 4 or layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


class Attend:
    name = "attend"

    @staticmethod
    def draw(geometry, generator):
        nbhd = geometry.neighborhood
        out = nbhd.output_size(geometry.height, geometry.width)
        channels = HEADS * HEAD_DIM
        shapes = {
            "q": (BATCH, channels, *out),
            "k": (BATCH, channels, geometry.height, geometry.width),
            "v": (BATCH, channels, geometry.height, geometry.width),
            "bias": (1, len(nbhd)),
            "key_offsets": (HEADS, len(nbhd), HEAD_DIM),
        }
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]

    @staticmethod
    def run(inputs, geometry):
        q, k, v, bias, key_offsets = inputs
        return ops.attend(q, k, v, geometry.neighborhood, num_heads=HEADS, bias=bias, key_offsets=key_offsets)

    @staticmethod
    def reference(inputs, geometry):
        return attend_reference.attend(*inputs, geometry.neighborhood, HEADS, HEAD_DIM**-0.5)


class Correlate:
    name = "correlate"

    @staticmethod
    def draw(geometry, generator):
        return Attend.draw(geometry, generator)[:2]

    @staticmethod
    def run(inputs, geometry):
        return ops.correlate(*inputs, geometry.neighborhood, num_heads=HEADS)

    @staticmethod
    def reference(inputs, geometry):
        return correlate_reference.correlate(*inputs, geometry.neighborhood, HEADS)


class Aggregate:
    name = "aggregate"

    @staticmethod
    def draw(geometry, generator):
        q, k = Attend.draw(geometry, generator)[:2]
        weights = (BATCH, HEADS, len(geometry.neighborhood), *q.shape[-2:])
        return [torch.randn(weights, generator=generator, dtype=torch.float64), k]

    @staticmethod
    def run(inputs, geometry):
        return ops.aggregate(*inputs, geometry.neighborhood)

    @staticmethod
    def reference(inputs, geometry):
        return aggregate_reference.aggregate(*inputs, geometry.neighborhood)


class Scatter:
    name = "scatter"

    @staticmethod
    def draw(geometry, generator):
        weights, _ = Aggregate.draw(geometry, generator)
        return [weights, Attend.draw(geometry, generator)[0]]

    @staticmethod
    def run(inputs, geometry):
        return ops.scatter(*inputs, geometry.neighborhood, (geometry.height, geometry.width))

    @staticmethod
    def reference(inputs, geometry):
        return scatter_reference.scatter(*inputs, geometry.neighborhood, (geometry.height, geometry.width))


OPERATORS = [Attend, Correlate, Aggregate, Scatter]
