"""Inputs and references that every operator's contract test draws on."""

from dataclasses import dataclass

import torch

from convattn import ops
from convattn.ops import Neighborhood
from convattn.ops.acmix import reference as acmix_reference
from convattn.ops.aggregate import reference as aggregate_reference
from convattn.ops.attend import reference as attend_reference
from convattn.ops.correlate import reference as correlate_reference
from convattn.ops.dynamic_conv import reference as dynamic_conv_reference
from convattn.ops.group_convolution import reference as group_convolution_reference
from convattn.ops.offset_convolution import reference as offset_convolution_reference
from convattn.ops.pixel_shift import reference as pixel_shift_reference
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


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps every call of an operator of ours."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "convattn":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Attend:
    name = "attend"
    batch, heads, head_dim = BATCH, HEADS, HEAD_DIM
    of_heads = (1, HEADS)  # how many heads' bias and key_offsets there are

    @classmethod
    def draw(cls, geometry, generator):
        nbhd = geometry.neighborhood
        out = nbhd.output_size(geometry.height, geometry.width)
        channels = cls.heads * cls.head_dim
        shapes = {
            "q": (cls.batch, channels, *out),
            "k": (cls.batch, channels, geometry.height, geometry.width),
            "v": (cls.batch, channels, geometry.height, geometry.width),
            "bias": (cls.of_heads[0], len(nbhd)),
            "key_offsets": (cls.of_heads[1], len(nbhd), cls.head_dim),
        }
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        q, k, v, bias, key_offsets = inputs
        options = {"num_heads": cls.heads, "bias": bias, "key_offsets": key_offsets, "backend": backend}
        return ops.attend(q, k, v, geometry.neighborhood, **options)

    @classmethod
    def reference(cls, inputs, geometry):
        q, k, v, bias, key_offsets = inputs
        key_offsets = key_offsets.expand(cls.heads, -1, -1)
        scale = cls.head_dim**-0.5
        return attend_reference.attend(q, k, v, bias, key_offsets, geometry.neighborhood, cls.heads, scale)


class Correlate(Attend):
    name = "correlate"

    @classmethod
    def draw(cls, geometry, generator):
        return super().draw(geometry, generator)[:2]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        return ops.correlate(*inputs, geometry.neighborhood, num_heads=cls.heads, backend=backend)

    @classmethod
    def reference(cls, inputs, geometry):
        return correlate_reference.correlate(*inputs, geometry.neighborhood, cls.heads)


class Aggregate(Attend):
    name = "aggregate"

    @classmethod
    def draw(cls, geometry, generator):
        q, k = super().draw(geometry, generator)[:2]
        weights = (cls.batch, cls.heads, len(geometry.neighborhood), *q.shape[-2:])
        return [torch.randn(weights, generator=generator, dtype=torch.float64), k]

    @staticmethod
    def run(inputs, geometry, backend="auto"):
        return ops.aggregate(*inputs, geometry.neighborhood, backend=backend)

    @staticmethod
    def reference(inputs, geometry):
        return aggregate_reference.aggregate(*inputs, geometry.neighborhood)


class Scatter(Aggregate):
    name = "scatter"

    @classmethod
    def draw(cls, geometry, generator):
        weights, _ = super().draw(geometry, generator)
        return [weights, Attend.draw.__func__(cls, geometry, generator)[0]]

    @staticmethod
    def run(inputs, geometry, backend="auto"):
        size = (geometry.height, geometry.width)
        return ops.scatter(*inputs, geometry.neighborhood, size, backend=backend)

    @staticmethod
    def reference(inputs, geometry):
        return scatter_reference.scatter(*inputs, geometry.neighborhood, (geometry.height, geometry.width))


class PixelShift(Attend):
    """X-volution's attention with everything that it can have: heads, values and a bias."""

    name = "pixel_shift_attention"

    @classmethod
    def draw(cls, geometry, generator):
        taps = len(geometry.neighborhood)
        tables = [(taps, cls.heads * cls.head_dim), (cls.heads, taps)]
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in tables]
        return [*super().draw(geometry, generator)[:3], *drawn]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        *maps, weight, bias = inputs
        options = {"num_heads": cls.heads, "bias": bias, "backend": backend}
        return ops.pixel_shift_attention(*maps, weight, geometry.neighborhood, **options)

    @classmethod
    def reference(cls, inputs, geometry):
        return pixel_shift_reference.pixel_shift_attention(*inputs, geometry.neighborhood, cls.heads)


class PixelShiftProduct:
    """The reading without values, products channel by channel, no bias."""

    name = "pixel_shift_attention-product"

    @staticmethod
    def draw(geometry, generator):
        q, k, _, weight, _ = PixelShift.draw(geometry, generator)
        return [q, k, weight]

    @staticmethod
    def run(inputs, geometry, backend="auto"):
        q, k, weight = inputs
        return ops.pixel_shift_attention(
            q, k, None, weight, geometry.neighborhood, num_heads=q.shape[1], backend=backend
        )

    @staticmethod
    def reference(inputs, geometry):
        q, k, weight = inputs
        return pixel_shift_reference.pixel_shift_attention(q, k, None, weight, None, geometry.neighborhood, q.shape[1])


class DynamicConv:
    """A kernel for every pixel, in two groups; it has no backends."""

    name = "dynamic_conv"
    channels, groups, outputs = 6, 2, 4

    @classmethod
    def draw(cls, geometry, generator):
        nbhd, channels = geometry.neighborhood, cls.channels
        out = nbhd.output_size(geometry.height, geometry.width)
        shapes = [
            (BATCH, cls.outputs, channels // cls.groups, len(nbhd), *out),
            (BATCH, channels, geometry.height, geometry.width),
        ]
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        kernel, x = inputs
        return ops.dynamic_conv(x, kernel, geometry.neighborhood, groups=cls.groups)

    @classmethod
    def reference(cls, inputs, geometry):
        kernel, x = inputs
        return dynamic_conv_reference.dynamic_conv(x, kernel, geometry.neighborhood, cls.groups)


class OffsetConvolution:
    """A convolution of 5 maps to 2 blocks of 3, so that vectors end in the middle."""

    name = "offset_convolution"
    inputs, blocks, outputs = 5, 2, 3

    @classmethod
    def draw(cls, geometry, generator):
        shapes = [
            (BATCH, cls.inputs, geometry.height, geometry.width),
            (cls.blocks, len(geometry.neighborhood) * cls.inputs, cls.outputs),
            (cls.blocks * cls.outputs,),
        ]
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    @staticmethod
    def run(inputs, geometry, backend="auto"):
        x, weight, bias = inputs
        return ops.offset_convolution(x, weight, geometry.neighborhood, bias, backend=backend)

    @staticmethod
    def reference(inputs, geometry):
        x, weight, bias = inputs
        return offset_convolution_reference.offset_convolution(x, weight, geometry.neighborhood, bias)


class WindowAttend:
    """``attend`` where kernels of their own serve: windows of 3x3, 5x5 or 7x7, no tables, 4 channels a head or more.

    Of 29, every size of vectors has some.
    """

    name = "attend-window"
    heads, head_dim = 3, 29

    @classmethod
    def draw(cls, geometry, generator):
        out = geometry.neighborhood.output_size(geometry.height, geometry.width)
        full, channels = (geometry.height, geometry.width), cls.heads * cls.head_dim
        return [
            torch.randn(BATCH, channels, *size, generator=generator, dtype=torch.float64) for size in (out, full, full)
        ]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        return ops.attend(*inputs, geometry.neighborhood, num_heads=cls.heads, backend=backend)

    @classmethod
    def reference(cls, inputs, geometry):
        return attend_reference.attend(*inputs, None, None, geometry.neighborhood, cls.heads, cls.head_dim**-0.5)


class Acmix:
    """The whole operator; a bias and a ReLU at the end, which inference folds in."""

    name = "acmix"
    batch, heads, head_dim, c_in = BATCH, 2, 16, 5

    @classmethod
    def draw(cls, geometry, generator):
        channels, size = cls.heads * cls.head_dim, (geometry.height, geometry.width)
        shapes = {
            "x": (cls.batch, cls.c_in, *size),
            "projection_weight": (3 * channels, cls.c_in, 1, 1),
            "projection_bias": (3 * channels,),
            "position": (cls.head_dim, 2),
            "weight": (3 * cls.heads, 3, 3, cls.heads, cls.head_dim),
            "scale": (1,),
            "bias": (channels,),
        }
        drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        drawn["projection_weight"] *= cls.c_in**-0.5
        drawn["weight"] *= (27 * cls.heads) ** -0.5
        return list(drawn.values())

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        return ops.acmix(*inputs, nbhd=geometry.neighborhood, num_heads=cls.heads, backend=backend)

    @classmethod
    def reference(cls, inputs, geometry):
        return acmix_reference.acmix(*inputs, nbhd=geometry.neighborhood, num_heads=cls.heads)


class GroupConvolution:
    """ACmix's folded convolution path: 5 maps of 17 channels to 2, so that vectors end in the middle."""

    name = "group_convolution"
    inputs, outputs, groups = 5, 2, 17

    @classmethod
    def draw(cls, geometry, generator):
        shapes = {
            "x": (BATCH, cls.inputs * cls.groups, geometry.height, geometry.width),
            "weight": (cls.inputs, 3, 3, cls.outputs, cls.groups),
            "bias": (cls.outputs * cls.groups,),
        }
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]

    @classmethod
    def run(cls, inputs, geometry, backend="auto"):
        return ops.group_convolution(*inputs, stride=geometry.neighborhood.stride, backend=backend)

    @classmethod
    def reference(cls, inputs, geometry):
        return group_convolution_reference.group_convolution(*inputs, stride=geometry.neighborhood.stride[0])


def resized(operator, name, **sizes):
    """An operator's cases with other dimensions."""
    return type(name, (operator,), {"name": f"{operator.name}-{name}", **sizes})


# Every dimension that is free larger and smaller than the others at least once, over all cases of an operator.
MANY = {"batch": 1, "heads": 5, "head_dim": 2, "of_heads": (5, 1)}
WIDE = {"batch": 4, "heads": 1, "head_dim": 17, "of_heads": (1, 1)}
RESIZED = [
    *(resized(o, "many_heads", **MANY) for o in (Attend, Correlate, Aggregate, Scatter, PixelShift)),
    *(resized(o, "one_head", **WIDE) for o in (Attend, Correlate, Aggregate, Scatter, PixelShift)),
    resized(OffsetConvolution, "more_outputs", inputs=1, blocks=3, outputs=17),
    resized(OffsetConvolution, "more_inputs", inputs=19, blocks=1, outputs=2),
    resized(DynamicConv, "more_outputs", channels=3, groups=3, outputs=9),
]
RESIZED_WINDOWS = [
    resized(WindowAttend, "many_heads", heads=18, head_dim=16),
    resized(Acmix, "many_heads", batch=1, heads=17, head_dim=16, c_in=3),
    resized(Acmix, "one_head", batch=3, heads=1, head_dim=33, c_in=35),
    resized(GroupConvolution, "more_outputs", inputs=2, outputs=5, groups=17),
    resized(GroupConvolution, "many_outputs", inputs=1, outputs=9, groups=2),
    resized(GroupConvolution, "one_group", inputs=3, outputs=4, groups=1),
]
OPERATORS = [Attend, Correlate, Aggregate, Scatter]
X_VOLUTION_OPERATORS = [PixelShift, PixelShiftProduct, OffsetConvolution, DynamicConv]
WINDOW_OPERATORS = [WindowAttend, Acmix, GroupConvolution]
WINDOWS = [
    Geometry(1, 1, 7),
    Geometry(2, 3, 7, stride=2),
    Geometry(9, 7, 7),
    Geometry(7, 9, 7, stride=2),
    Geometry(5, 18, 7),
    Geometry(6, 35, 7, stride=2),
    Geometry(4, 6, 3),
    Geometry(9, 19, 5, stride=2),
    Geometry(3, 2, 5),
    Geometry(10, 33, 3, stride=2),
]
