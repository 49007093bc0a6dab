"""Rewrites of an ONNX model for runtimes that would compute it as it stands."""

from __future__ import annotations

from typing import Any

from convattn.export.packages import needed

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Orders of the axes of a map, as a ``Transpose`` takes them."""


def rewritten(program: Any) -> Any:
    """An ``onnx_ir`` model with our rewrites done.

    A 1x1 convolution from tokens to tokens becomes a matrix product. As a convolution, runtimes would turn the tokens
    into planes before it and back after it. One whose planes go on to other layers stays: those fuse with it.
    """
    rewriter = needed("onnxscript.rewriter", install="onnxscript")
    pattern = needed("onnxscript.rewriter.pattern", install="onnxscript")
    rule = pattern.RewriteRule(
        _pointwise_of_tokens, _matrix_product, _is_pointwise_of_tokens, name="pointwise_of_tokens"
    )
    return rewriter.rewrite(program, [rule])


def _pointwise_of_tokens(op: Any, tokens: Any, weight: Any) -> Any:
    planes = op.Transpose(tokens, perm=TO_CHANNELS_FIRST)
    return op.Conv(planes, weight, _allow_other_inputs=True, _outputs=["planes"])


def _is_pointwise_of_tokens(context: Any, weight: Any, planes: Any, **_: Any) -> bool:
    attributes = planes.producer().attributes
    ones = [*attributes.get_ints("strides", [1]), attributes.get_int("group", 1)]
    shape = None if weight.shape is None else list(weight.shape)
    is_padded = any(attributes.get_ints("pads", [0])) or attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    is_pointwise = shape is not None and shape[2:] == [1, 1] and set(ones) == {1} and not is_padded
    return is_pointwise and _is_read_as_tokens(planes)


def _is_read_as_tokens(planes: Any) -> bool:
    """Whether all who read planes turn them, or parts of their channels, into tokens; their shape may be asked for."""
    readers = [node for node in planes.consumers() if node.op_type != "Shape"]
    return bool(readers) and all(
        all(map(_is_read_as_tokens, node.outputs))
        if node.op_type == "Split"
        else node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == TO_CHANNELS_LAST
        for node in readers
    )


def _matrix_product(op: Any, tokens: Any, weight: Any, planes: Any, **_: Any) -> Any:
    columns = op.Transpose(op.Squeeze(weight, op.Constant(value_ints=[2, 3])), perm=[1, 0])
    product, bias = op.MatMul(tokens, columns), planes.producer().inputs[2:]
    return op.Transpose(op.Add(product, bias[0]) if bias else product, perm=TO_CHANNELS_FIRST)
