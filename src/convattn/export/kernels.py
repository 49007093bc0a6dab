"""ONNX files whose operators are ours: other runtimes compute them by the CPU kernels of ``csrc/``.

onnxruntime registers the library with the session that opens the file; it needs neither torch nor Python, and runs on
the session's own threads. For OpenVINO see :mod:`convattn.export.openvino_extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from convattn.errors import UserError
from convattn.ops import _dispatch, _native, _recording
from convattn.ops.acmix.native import BLOCK
from convattn.ops.neighborhood import BORDERS, Neighborhood

DOMAIN = "convattn"
"""Of our operators in an ONNX file."""

LIBRARY = "libconvattn_runtimes.so"

Attributes: TypeAlias = Mapping[str, Any]

_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def onnxruntime_library() -> Path:
    """The library that ``SessionOptions.register_custom_ops_library`` needs for a file of our operators.

    Raises:
        UserError: it was not built on this machine; the message says why.

    Example:
        >>> from convattn.export import onnxruntime_library
        >>> onnxruntime_library().name
        'libconvattn_runtimes.so'
    """
    return runtimes_library()


def runtimes_library() -> Path:
    """The library with our operators for other runtimes.

    Raises:
        UserError: it was not built on this machine; the message says why.
    """
    if not has_runtimes_library():
        record = _native.build_record()
        why = _native.reasons() or [record.no_runtimes if record else "they were not built"]
        raise UserError(
            f"there are no operators of convattn for other runtimes here: {'; '.join(why)}; "
            "export with standard operators, or build convattn with GCC"
        )
    return _native.FOLDER / LIBRARY


def has_runtimes_library() -> bool:
    """Whether the library was built."""
    return (_native.FOLDER / LIBRARY).is_file()


def _of_neighborhood(nbhd: Neighborhood) -> dict[str, Any]:
    return {
        "offsets_i": list(nbhd.flat_offsets),
        "stride_i": list(nbhd.stride),
        "border_i": BORDERS.index(nbhd.border),
    }


def _acmix(x: Any) -> dict[str, Any]:
    attributes = {"num_heads_i": x.num_heads, "scale_f": x.softmax_scale, "relu_i": int(x.activation == "relu")}
    return attributes | _of_neighborhood(x.nbhd)


def _attend(x: Any) -> dict[str, Any]:
    return {"num_heads_i": x.num_heads, "scale_f": x.scale} | _of_neighborhood(x.nbhd)


def _products(x: Any) -> dict[str, Any]:
    heads = x.num_heads if hasattr(x, "num_heads") else int(x.weights.shape[1])
    return {"num_heads_i": heads} | _of_neighborhood(x.nbhd)


def _group_convolution(x: Any) -> dict[str, Any]:
    return {"stride_i": [int(step) for step in x.steps[:2]]}


def _offset_convolution(x: Any) -> dict[str, Any]:
    return _of_neighborhood(x.nbhd)


_ATTRIBUTES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "acmix": _acmix,
    "acmix_layer": _acmix,
    "attend": _attend,
    "correlate": _products,
    "aggregate": _products,
    "group_convolution": _group_convolution,
    "offset_convolution": _offset_convolution,
    "pixel_shift_attention": _attend,
}
"""What the library's operators are told beside their tensors; ``csrc/runtime_operators.h`` lists them."""

OPERATORS = tuple(_ATTRIBUTES)

_MAPS = {
    "acmix": 1,
    "acmix_layer": 1,
    "attend": 3,
    "group_convolution": 1,
    "offset_convolution": 1,
    "pixel_shift_attention": 3,
}
"""How many of the first tensors are maps that the library wants channels-last; so is the output then."""


class _NodeKind(NamedTuple):
    """What a node has beside its inputs."""

    name: str
    attributes: Attributes
    sizes: list[int | None]
    """Of its output; None: not known."""
    projection: tuple[int, ...] = ()
    """Of ``acmix_layer``: outputs and inputs of the projection."""


class _Node(torch.autograd.Function):
    """One of our operators in a program that torch's exporter records; its ``symbolic`` writes the node."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Tensor], node: _NodeKind, *tensors: Any) -> Tensor:
        """The output, for the types of what comes after."""
        return run()

    @staticmethod
    def symbolic(g: Any, run: Any, node: _NodeKind, *tensors: Any) -> Any:
        """The node, and the transposes around it, which runtimes fuse into the convolutions on both sides."""
        if node.name == "acmix":
            tensors = _projected(g, tensors)
        elif node.name == "acmix_layer":
            tensors = tensors[0], _packed(g, tensors[1], *node.projection), *tensors[2:]
        maps = _MAPS.get(node.name, 0)
        given = [
            g.op("Transpose", x, perm_i=_TO_CHANNELS_LAST) if place < maps and x is not None else x
            for place, x in enumerate(tensors)
        ]
        out = _node(g, node, given)
        return g.op("Transpose", out, perm_i=_TO_CHANNELS_FIRST) if maps else out


def _projected(g: Any, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs of ``acmix``: the projection is a convolution of the runtime's own."""
    x, projection, projection_bias, *others = tensors
    biases = [] if projection_bias is None else [projection_bias]
    return g.op("Conv", x, projection, *biases, kernel_shape_i=[1, 1]), *others


def _packed(g: Any, weight: Any, outputs: int, inputs: int) -> Any:
    """A projection's weights as :func:`convattn.ops.acmix.native.packed_projection` lays them out.

    In the graph's operators: the exporter loses tensors that torch's operators make for a node.
    """

    def numbers(*values: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(values))

    padded = g.op("Pad", g.op("Reshape", weight, numbers(outputs, inputs)), numbers(0, 0, -outputs % BLOCK, 0))
    return g.op("Transpose", g.op("Reshape", padded, numbers(-1, BLOCK, inputs)), perm_i=[0, 2, 1])


def _node(g: Any, node: _NodeKind, tensors: Sequence[Any]) -> Any:
    """One of our operators; a tensor that is not there is an input without a name, or none at the end."""
    given = list(tensors)
    while given and given[-1] is None:
        given.pop()
    out = g.op(f"{DOMAIN}::{node.name}", *(_nothing(g) if x is None else x for x in given), **node.attributes)
    # onnxruntime cannot tell of an operator that is not its own, and fuses nothing of an unknown shape
    out.setType(given[0].type().with_sizes(node.sizes))
    return out


def _nothing(g: Any) -> Any:
    value = g.op("prim::Constant")
    value.setType(torch._C.NoneType.get())
    return value


@contextmanager
def recorded(acmix: Literal["acmix", "acmix_layer"]) -> Iterator[None]:
    """Under it, torch's ONNX exporter (``dynamo=False``) writes our operators as nodes, where a kernel serves them.

    Args:
        acmix: what becomes of ACmix: ``"acmix_layer"`` has the projection in it, ``"acmix"`` follows a convolution of
            the runtime's own, which can be quantised.
    """
    runtimes_library()

    def record(name: str, inputs: Any, run: Callable[[], Tensor]) -> Tensor | None:
        if name not in _ATTRIBUTES or _dispatch.reasons_against("native", name, inputs):
            return None
        sizes = _recording.output_sizes(inputs.output_shape)
        name = acmix if name == "acmix" else name
        if name in _MAPS:
            sizes = [sizes[place] for place in _TO_CHANNELS_LAST]
        projection = tuple(map(int, inputs.projection_weight.shape[:2])) if name == "acmix_layer" else ()
        node = _NodeKind(name, _ATTRIBUTES[name](inputs), sizes, projection)
        out: Tensor = _Node.apply(run, node, *inputs.tensors)
        return out

    with _recording.recording(record):
        yield
