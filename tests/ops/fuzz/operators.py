"""A random call of every operator, each dimension drawn by itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convattn import ops
from convattn.ops import Neighborhood
from tests.ops.fuzz import truth
from tests.ops.fuzz.draw import kind_of_neighborhood, neighborhood, shrink, window, within

FAST = ((1, 1), (2, 2))
"""The strides that the kernels for windows serve."""


@dataclass
class Call:
    """One call of an operator.

    Args:
        said: dimensions and options, for a person.
        shapes: of every tensor that is there.
        run: the operator, on these tensors by a backend.
        truth: what it must come to, before a ReLU.
        spread: standard deviation of a tensor's numbers where it is not 1.
        tables: tensors that may be float32 beside maps of a half type.
        like: the tensor whose memory format the output has.
        native: whether the CPU kernels serve this call, if its dtype is one of theirs; None: it has no backends.
        relu: whether a ReLU comes last.
        terms: how many products an output sums.
        empty: the dimensions of channels that may be 0.
    """

    said: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    run: Callable
    truth: Callable
    like: str | None
    native: bool | None = True
    spread: dict[str, float] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    relu: bool = False
    terms: int = 1
    empty: tuple[str, ...] = ()


def _size(dice):
    """Of a map."""
    return {"H": dice.length(), "W": dice.length()}


def _kernel(dice, fast, height="kh", width="kw"):
    """Of a convolution, odd: 3x3 where it is to be fast, and often elsewhere."""
    small = fast or dice.chance(0.3)
    return {name: 3 if small else dice.kernel(odd=True) for name in (height, width)}


def _maps(dice, square=0.3, values=1):
    """Dimensions and neighbourhood of the operators over q, k and v."""
    kind, kernel = kind_of_neighborhood(dice, square)
    dims = {"B": dice.batch(), "N": dice.heads(), "d": dice.channels(), **_size(dice), **kernel}
    least = {"d": min(16, dims["d"])} if kind == "square" and dice.chance(0.8) else {}
    if kind in ("square", "directions"):
        least |= kernel
    shrink(dice, dims, lambda x: values * x["B"] * x["N"] * x["d"] * x["H"] * x["W"] * x["kh"] * x["kw"], least)
    nbhd = neighborhood(dice, dims, kind, dims["B"] * dims["N"] * dims["d"])
    channels, full = dims["N"] * dims["d"], (dims["H"], dims["W"])
    at_output, at_input = ((dims["B"], channels, *size) for size in (nbhd.output_size(*full), full))
    weights = (dims["B"], dims["N"], len(nbhd), *at_output[2:])
    return {**dims, "nbhd": nbhd}, at_output, at_input, weights


def attend(dice):
    """Tables for each head or for all, any scale."""
    dims, q, k, _ = _maps(dice, values=2)
    nbhd, heads = dims["nbhd"], dims["N"]
    shapes = {"q": q, "k": k, "v": k}
    plain = dice.chance(0.5)  # the kernels for windows take no tables
    if not plain and dice.table():
        shapes["bias"] = (dice.choice((1, heads)), len(nbhd))
    if not plain and dice.table():
        shapes["key_offsets"] = (dice.choice((1, heads)), len(nbhd), dims["d"])
    scale = dice.choice((None, None, 0.3, 1.0, -0.5, 0.0))

    def run(t, backend):
        tables = {name: t.get(name) for name in ("bias", "key_offsets")}
        return ops.attend(t["q"], t["k"], t["v"], nbhd, num_heads=heads, scale=scale, backend=backend, **tables)

    def true(t):
        taken = max(dims["d"], 1) ** -0.5 if scale is None else scale
        return truth.attend(t["q"], t["k"], t["v"], nbhd, heads, taken, t.get("bias"), t.get("key_offsets"))

    # logits of large differences would make every softmax one-hot
    spread = {"q": 1.0 if scale is None else max(dims["d"], 1) ** -0.5}
    said = {**dims, "scale": scale}
    return Call(
        said, shapes, run, true, "q", spread=spread, tables=("bias", "key_offsets"), terms=len(nbhd), empty=("d",)
    )


def correlate(dice):
    """Queries and keys."""
    dims, q, k, _ = _maps(dice, square=0.1)
    nbhd, heads = dims["nbhd"], dims["N"]
    return Call(
        dims,
        {"q": q, "k": k},
        lambda t, backend: ops.correlate(t["q"], t["k"], nbhd, num_heads=heads, backend=backend),
        lambda t: truth.correlate(t["q"], t["k"], nbhd, heads),
        None,
        terms=dims["d"],
        empty=("d",),
    )


def aggregate(dice):
    """Weights for every pixel, and values."""
    dims, _, v, weights = _maps(dice, square=0.1)
    nbhd = dims["nbhd"]
    return Call(
        dims,
        {"weights": weights, "v": v},
        lambda t, backend: ops.aggregate(t["weights"], t["v"], nbhd, backend=backend),
        lambda t: truth.aggregate(t["weights"], t["v"], nbhd),
        "v",
        spread={"weights": len(nbhd) ** -0.5},
        terms=len(nbhd),
        empty=("d",),
    )


def scatter(dice):
    """Weights for every pixel, and a map at the output resolution."""
    dims, u, _, weights = _maps(dice, square=0.1)
    nbhd, size = dims["nbhd"], (dims["H"], dims["W"])
    return Call(
        dims,
        {"weights": weights, "u": u},
        lambda t, backend: ops.scatter(t["weights"], t["u"], nbhd, size, backend=backend),
        lambda t: truth.scatter(t["weights"], t["u"], nbhd, size),
        "u",
        spread={"weights": len(nbhd) ** -0.5},
        terms=len(nbhd),
        empty=("d",),
    )


def pixel_shift_attention(dice):
    """With values or without, with a bias or without."""
    dims, q, k, _ = _maps(dice, square=0.05, values=2)
    nbhd, heads, channels = dims["nbhd"], dims["N"], dims["N"] * dims["d"]
    shapes = {"q": q, "k": k}
    if dice.table():
        shapes["v"] = k
    shapes["weight"] = (len(nbhd), channels)
    if dice.table():
        shapes["bias"] = (heads, len(nbhd))

    def run(t, backend):
        options = {"num_heads": heads, "bias": t.get("bias"), "backend": backend}
        return ops.pixel_shift_attention(t["q"], t["k"], t.get("v"), t["weight"], nbhd, **options)

    def true(t):
        return truth.pixel_shift_attention(t["q"], t["k"], t.get("v"), t["weight"], t.get("bias"), nbhd, heads)

    spread = {"weight": len(nbhd) ** -0.5}
    return Call(dims, shapes, run, true, "q", spread=spread, tables=("weight", "bias"), terms=len(nbhd), empty=("d",))


def acmix(dice):
    """The whole operator: half of the cases in the form that its kernels serve."""
    fast = dice.chance(0.6)
    kind, kernel = kind_of_neighborhood(dice, 1000 if fast else 0.1)
    conv = _kernel(dice, fast, "ch", "cw")
    dims = {"B": dice.batch(), "C_in": dice.channels(), "N": dice.heads(), "d": dice.channels()}
    dims |= {**_size(dice), **kernel, **conv}
    least = {**conv, **({**kernel, "d": min(16, dims["d"])} if kind == "square" else {})}

    def cost(x):
        attention = 2 * x["kh"] * x["kw"] + 3 * x["ch"] * x["cw"] * (1 + x["N"] // 4) + 3 * x["C_in"]
        return x["B"] * x["N"] * x["d"] * x["H"] * x["W"] * attention

    shrink(dice, dims, cost, least)
    heads, d, c_in = dims["N"], dims["d"], dims["C_in"]
    channels = heads * d
    nbhd = neighborhood(dice, dims, kind, 3 * dims["B"] * channels)
    steps = (1, 1) if fast or dice.chance(0.5) else dice.pair(dice.dilation)
    conv_kernel = (dims["ch"], dims["cw"])
    if not fast:
        reached = Neighborhood.window(conv_kernel, dilation=steps, border="zeros")
        steps = steps if within(reached, dims, 3 * dims["B"] * channels) is reached else (1, 1)
    shapes = {"x": (dims["B"], c_in, dims["H"], dims["W"]), "projection_weight": (3 * channels, c_in, 1, 1)}
    if dice.table():
        shapes["projection_bias"] = (3 * channels,)
    if dice.table():
        shapes["position"] = (d, 2)
    shapes |= {"weight": (3 * heads, *conv_kernel, heads, d), "scale": dice.choice(((1,), (channels,)))}
    if dice.table():
        shapes["bias"] = (channels,)
    activation = dice.choice(("none", "none", "relu"))

    def run(t, backend):
        optional = [t.get(name) for name in ("projection_bias", "position")]
        options = {"num_heads": heads, "dilation": steps, "activation": activation, "backend": backend}
        x, projection, *rest = t["x"], t["projection_weight"], *optional, t["weight"], t["scale"], t.get("bias")
        return ops.acmix(x, projection, *rest, nbhd=nbhd, **options)

    def true(t):
        window = Neighborhood.window(conv_kernel, dilation=steps, stride=nbhd.stride, border="zeros")
        return truth.acmix(t, nbhd, window, heads)

    taps = conv_kernel[0] * conv_kernel[1]
    spread = {"projection_weight": max(c_in, 1) ** -0.5, "weight": (3 * taps * heads) ** -0.5}
    native = kind == "square" and conv_kernel == (3, 3) and steps == (1, 1) and d >= 4
    tables = ("position", "weight", "scale", "bias")
    said = {**dims, "nbhd": nbhd, "dilation": steps, "activation": activation}
    relu = activation == "relu"
    terms = max(len(nbhd), 3 * taps * heads)
    return Call(said, shapes, run, true, "x", native, spread, tables, relu, terms, empty=("d", "C_in"))


def group_convolution(dice):
    """T maps to N, either larger."""
    fast = dice.chance(0.7)
    kernel = _kernel(dice, fast)
    dims = {"B": dice.batch(), "T": dice.randint(1, 12), "N": dice.randint(1, 12), "d": dice.channels()}
    dims |= {**_size(dice), **kernel}

    def cost(x):
        return x["B"] * x["T"] * x["d"] * x["H"] * x["W"] * x["kh"] * x["kw"] * (1 + x["N"] / 4)

    shrink(dice, dims, cost, kernel)
    if dice.chance(0.01):
        dims[dice.choice("TN")] = 0
    stride = dice.choice(FAST) if fast or dice.chance(0.3) else dice.pair(dice.stride)
    dilation = (1, 1) if fast else dice.pair(dice.dilation)
    size, planes = (dims["kh"], dims["kw"]), dims["B"] * dims["T"] * dims["d"]
    nbhd = Neighborhood.window(size, dilation=dilation, stride=stride, border="zeros")
    if within(nbhd, dims, planes) is not nbhd:
        dilation = (1, 1)
        nbhd = Neighborhood.window(size, stride=stride, border="zeros")
    channels = dims["N"] * dims["d"]
    shapes = {
        "x": (dims["B"], dims["T"] * dims["d"], dims["H"], dims["W"]),
        "weight": (dims["T"], *size, dims["N"], dims["d"]),
    }
    if dice.table():
        shapes["bias"] = (channels,)

    def run(t, backend):
        options = {"stride": stride, "dilation": dilation, "backend": backend}
        return ops.group_convolution(t["x"], t["weight"], t.get("bias"), **options)

    spread = {"weight": max(1, dims["T"] * size[0] * size[1]) ** -0.5}
    native = size == (3, 3) and stride in FAST and dilation == (1, 1)
    said = {**dims, "stride": stride, "dilation": dilation}
    true = lambda t: truth.group_convolution(t["x"], t["weight"], t.get("bias"), nbhd)  # noqa: E731
    terms = dims["T"] * size[0] * size[1]
    return Call(said, shapes, run, true, "x", native, spread, ("weight", "bias"), terms=terms, empty=("d", "T", "N"))


def offset_convolution(dice):
    """C maps to G blocks of V."""
    kind, kernel = kind_of_neighborhood(dice, 0.1)
    dims = {"B": dice.batch(), "C": dice.channels(), "G": dice.randint(1, 5), "V": dice.channels()}
    dims |= {**_size(dice), **kernel}

    def cost(x):
        return x["B"] * x["C"] * x["H"] * x["W"] * x["kh"] * x["kw"] * (1 + x["G"] * x["V"] / 16)

    shrink(dice, dims, cost, kernel if kind in ("square", "directions") else {})
    nbhd = neighborhood(dice, dims, kind, dims["B"] * max(dims["C"], dims["G"] * dims["V"]))
    shapes = {
        "x": (dims["B"], dims["C"], dims["H"], dims["W"]),
        "weight": (dims["G"], len(nbhd) * dims["C"], dims["V"]),
    }
    if dice.table():
        shapes["bias"] = (dims["G"] * dims["V"],)
    return Call(
        {**dims, "nbhd": nbhd},
        shapes,
        lambda t, backend: ops.offset_convolution(t["x"], t["weight"], nbhd, t.get("bias"), backend=backend),
        lambda t: truth.offset_convolution(t["x"], t["weight"], t.get("bias"), nbhd),
        "x",
        spread={"weight": max(1, len(nbhd) * dims["C"]) ** -0.5},
        terms=len(nbhd) * dims["C"],
        empty=("C", "V"),
    )


def dynamic_conv(dice):
    """C maps to O in groups, with a kernel for every pixel or for all."""
    kind, kernel = kind_of_neighborhood(dice, 0.05)
    dims = {"B": dice.batch(), "groups": dice.randint(1, 5), "C": dice.randint(1, 9), "O": dice.randint(1, 9)}
    dims |= {**_size(dice), **kernel}

    def cost(x):
        return x["B"] * x["groups"] * x["C"] * x["O"] * x["H"] * x["W"] * x["kh"] * x["kw"]

    shrink(dice, dims, cost, kernel if kind in ("square", "directions") else {})
    groups = dims["groups"]
    nbhd = neighborhood(dice, dims, kind, dims["B"] * groups * max(dims["C"], dims["O"]))
    out = nbhd.output_size(dims["H"], dims["W"])
    batch, height, width = (dice.choice((1, size)) for size in (dims["B"], *out))
    return Call(
        {**dims, "nbhd": nbhd},
        {
            "x": (dims["B"], groups * dims["C"], dims["H"], dims["W"]),
            "kernel": (batch, groups * dims["O"], dims["C"], len(nbhd), height, width),
        },
        lambda t, _: ops.dynamic_conv(t["x"], t["kernel"], nbhd, groups=groups),
        lambda t: truth.dynamic_conv(t["x"], t["kernel"].expand(dims["B"], -1, -1, -1, *out), nbhd, groups),
        "x",
        native=None,
        spread={"kernel": (len(nbhd) * dims["C"]) ** -0.5},
        terms=len(nbhd) * dims["C"],
    )


def shift(dice):
    """By any number of rows and columns."""
    dims = {"B": dice.batch(), "C": dice.channels(), **_size(dice)}
    shrink(dice, dims, lambda x: 4 * x["B"] * x["C"] * x["H"] * x["W"])
    dy, dx = (dice.one_of((8, dice.randint(-5, 5)), (1, dice.choice((-(10**6), 10**6)))) for _ in range(2))
    nbhd = Neighborhood(((dy, dx),), border="zeros")
    return Call(
        {**dims, "dy": dy, "dx": dx},
        {"x": tuple(dims.values())},
        lambda t, _: ops.shift(t["x"], dy, dx),
        lambda t: truth.neighbours(t["x"], nbhd)[:, :, 0],
        None,
        native=None,
        empty=("C",),
    )


def shift_aggregate(dice):
    """In each of its forms."""
    dims = {"B": dice.batch(), "groups": dice.randint(1, 5), "M": dice.randint(1, 4), **_size(dice)}
    dims |= _kernel(dice, fast=False)

    def cost(x):
        return 4 * x["B"] * x["groups"] * x["M"] * x["H"] * x["W"] * (x["kh"] * x["kw"]) ** 2

    shrink(dice, dims, cost)
    kernel = dims["kh"], dims["kw"] = dims["kh"] // 2 * 2 + 1, dims["kw"] // 2 * 2 + 1
    groups, taps = dims["groups"], kernel[0] * kernel[1]
    nbhd = window(dice, dims, border="zeros")
    stride, dilation = nbhd.stride, dice.pair(dice.dilation)
    nbhd = Neighborhood.window(kernel, dilation=dilation, stride=stride, border="zeros")
    if within(nbhd, dims, dims["B"] * groups * taps) is not nbhd:
        dilation = (1, 1)
        nbhd = Neighborhood.window(kernel, stride=stride, border="zeros")
    form = dice.choice(("tensor", "depthwise", "grouped"))
    shapes = {"x": (dims["B"], groups * taps, dims["H"], dims["W"])}
    if form == "grouped" and dice.chance(0.7):
        shapes["weight"] = (groups * dims["M"], taps, *kernel)
    options = {"groups": groups, "stride": stride, "dilation": dilation, "form": form}
    return Call(
        {**dims, **options},
        shapes,
        lambda t, _: ops.shift_aggregate(t["x"], kernel, weight=t.get("weight"), **options),
        lambda t: truth.shift_aggregate(t["x"], t.get("weight"), nbhd, groups),
        None,
        native=None,
        spread={"weight": 1 / taps},
        terms=taps**2,
    )


KERNELS = (
    *(attend, correlate, aggregate, scatter, acmix, group_convolution, offset_convolution, pixel_shift_attention),
)
OTHERS = (dynamic_conv, shift, shift_aggregate)
OPERATORS = {draw.__name__: draw for draw in (*KERNELS, *OTHERS)}
WEIGHTS = {draw.__name__: 1 if draw in OTHERS else 4 for draw in (*KERNELS, *OTHERS)}
