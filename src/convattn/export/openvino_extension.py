"""Our operators inside OpenVINO: nodes in Python that call the CPU kernels of ``csrc/``.

An extension in C++ would fit one release of OpenVINO alone. The kernels run on OpenVINO's own threads.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from convattn.export.kernels import DOMAIN, OPERATORS, runtimes_library
from convattn.export.packages import needed

PREFIX = f"{DOMAIN}_"
"""Before an operator's name in OpenVINO's files."""

_DEFAULTS: Mapping[str, Any] = {
    "num_heads": 1,
    "scale": 1.0,
    "relu": 0,
    "offsets": [0, 0],
    "stride": [1, 1],
    "border": 1,
}
"""Attributes that a node was not given."""

_MESSAGE_BYTES = 512

Shape: TypeAlias = Sequence[int]


def openvino_operators() -> list[Any]:
    """What ``openvino.Core.add_extension`` needs for a file of our operators, ``.xml`` or ``.onnx``.

    Raises:
        UserError: OpenVINO is missing, or the kernels were not built on this machine; the message says why.

    Example:
        >>> import openvino
        >>> from convattn.export import openvino_operators
        >>> core = openvino.Core()
        >>> core.add_extension(openvino_operators())
    """
    runtimes_library()
    openvino, onnx = needed("openvino"), needed("openvino.frontend.onnx")
    extensions = []
    for name in OPERATORS:
        operator = _operator(name)
        extensions += [
            openvino.OpExtension(operator),
            onnx.ConversionExtension(name, DOMAIN, partial(_from_onnx, operator)),
        ]
    return extensions


def has_our_operators(file: Path) -> bool:
    """Whether a file of OpenVINO, ``.xml``, has operators of ours."""
    return f'type="{PREFIX}'.encode() in file.read_bytes()


@cache
def _operator(name: str) -> Any:
    """The class of OpenVINO's nodes of one of our operators."""
    openvino: Any = needed("openvino")
    base: Any = openvino.Op

    class Operator(base):
        """A node."""

        def __init__(self, inputs: Any = None, attributes: Mapping[str, Any] | None = None) -> None:
            self.attributes = {**_DEFAULTS, **(attributes or {})}
            self.given: _Attributes | None = None
            super().__init__(self, inputs)

        def visit_attributes(self, visitor: Any) -> bool:
            """Read them from a file, or write them."""
            visitor.on_attributes(self.attributes)
            return True

        def validate_and_infer_types(self) -> None:
            """The output's type and shape."""
            shapes = [self.get_input_partial_shape(place) for place in range(self.get_input_size())]
            found = openvino.PartialShape.dynamic()
            if not any(shape.rank.is_dynamic for shape in shapes):
                sizes = [[-1 if size.is_dynamic else size.get_length() for size in shape] for shape in shapes]
                found = openvino.PartialShape(_shape(name, self.attributes, sizes))
            self.set_output_type(0, openvino.Type.f32, found)

        def clone_with_new_inputs(self, inputs: Any) -> Any:
            """The same operator of other tensors."""
            return Operator(list(inputs), self.attributes)

        def has_evaluate(self) -> bool:
            """Always."""
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            """Compute the output by the kernels."""
            self.given = self.given or _given(self.attributes)
            _compute(name, self.given, inputs, outputs[0])
            return True

    Operator.__name__ = PREFIX + name  # the type's name in files
    return Operator


def _from_onnx(operator: Any, node: Any) -> Any:
    """The outputs of a node that OpenVINO's reader of ONNX files met."""
    openvino = needed("openvino")
    given = [node.get_input(place) for place in range(node.get_input_size())]
    nothing = openvino.opset13.constant([], openvino.Type.f32)
    inputs = [nothing.output(0) if x.get_node().get_type_name() == "NullNode" else x for x in given]
    found = {key: node.get_attribute(key, otherwise) for key, otherwise in _DEFAULTS.items()}
    return operator(inputs, {key: list(x) if key in ("offsets", "stride") else x for key, x in found.items()}).outputs()


def _shape(name: str, attributes: Mapping[str, Any], inputs: Sequence[Sequence[int]]) -> list[int]:
    """The output's shape, -1 for a size that is not known yet.

    Raises:
        RuntimeError: inputs of another rank than the operator takes.
    """
    try:
        return _SHAPES[name](attributes, *inputs)
    except (IndexError, TypeError, ValueError) as error:
        raise RuntimeError(f"convattn.{name}: a map of another rank than the operator takes") from error


def _times(*sizes: int) -> int:
    return -1 if min(sizes) < 0 else math.prod(sizes)


def _map(attributes: Mapping[str, Any], x: Shape, channels: int) -> list[int]:
    """Of a channels-last output of a channels-last map."""
    height, width = (
        -1 if size < 0 else -(-size // step) for size, step in zip(x[1:3], attributes["stride"], strict=True)
    )
    return [x[0], height, width, channels]


def _acmix(attributes: Mapping[str, Any], qkv: Shape, *_: Shape) -> list[int]:
    return _map(attributes, qkv, max(-1, qkv[3] // 3))


def _acmix_layer(attributes: Mapping[str, Any], x: Shape, *others: Shape) -> list[int]:
    weight = others[3]
    return _map(attributes, x, _times(weight[3], weight[4]))


def _correlate(attributes: Mapping[str, Any], q: Shape, *_: Shape) -> list[int]:
    batch, _channels, height, width = q
    return [batch, attributes["num_heads"], len(attributes["offsets"]) // 2, height, width]


def _aggregate(_: Mapping[str, Any], weights: Shape, v: Shape) -> list[int]:
    return [v[0], v[1], weights[3], weights[4]]


def _group_convolution(attributes: Mapping[str, Any], x: Shape, weight: Shape, *_: Shape) -> list[int]:
    return _map(attributes, x, _times(weight[3], weight[4]))


def _offset_convolution(attributes: Mapping[str, Any], x: Shape, weight: Shape, *_: Shape) -> list[int]:
    return _map(attributes, x, _times(weight[0], weight[2]))


def _as_the_query(_: Mapping[str, Any], q: Shape, *_others: Shape) -> list[int]:
    return list(q)


_SHAPES: Mapping[str, Callable[..., list[int]]] = {
    "acmix": _acmix,
    "acmix_layer": _acmix_layer,
    "attend": _as_the_query,
    "correlate": _correlate,
    "aggregate": _aggregate,
    "group_convolution": _group_convolution,
    "offset_convolution": _offset_convolution,
    "pixel_shift_attention": _as_the_query,
}
"""Of the outputs, for the operators of ``csrc/runtime_operators.h``."""


class _Attributes(ctypes.Structure):
    """``GivenAttributes`` of ``csrc/runtime_openvino.cpp``."""

    _fields_ = [
        ("offsets", ctypes.POINTER(ctypes.c_int64)),
        ("stride", ctypes.POINTER(ctypes.c_int64)),
        *((name, ctypes.c_int64) for name in ("offset_count", "strides", "border", "heads", "relu")),
        ("scale", ctypes.c_float),
    ]


def _integers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _given(attributes: Mapping[str, Any]) -> _Attributes:
    offsets, stride = attributes["offsets"], attributes["stride"]
    numbers = (attributes[name] for name in ("border", "num_heads", "relu", "scale"))
    return _Attributes(_integers(offsets), _integers(stride), len(offsets), len(stride), *numbers)


@cache
def _library() -> Any:
    found = ctypes.CDLL(str(runtimes_library()))
    attributes, integers = ctypes.POINTER(_Attributes), ctypes.POINTER(ctypes.c_int64)
    found.convattn_openvino_compute.argtypes = [
        *(ctypes.c_char_p, attributes, integers, ctypes.c_size_t),
        *(ctypes.c_char_p, ctypes.c_size_t),
    ]
    return found


def _compute(name: str, attributes: _Attributes, inputs: Sequence[Any], output: Any) -> None:
    """Run one operator.

    Raises:
        RuntimeError: tensors that do not fit, or not enough memory.
    """
    told: list[int] = []
    for tensor in (output, *inputs):
        values = tensor.data
        told += (values.ctypes.data, values.ndim, *values.shape)
    why = ctypes.create_string_buffer(_MESSAGE_BYTES)
    if _library().convattn_openvino_compute(name.encode(), attributes, _integers(told), len(inputs), why, len(why)):
        raise RuntimeError(why.value.decode())
