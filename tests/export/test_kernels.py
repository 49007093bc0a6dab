"""ONNX files of our own operators: onnxruntime's answers by the CPU kernels, on every shape of the contract."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convattn
from convattn.errors import UserError
from convattn.export import OnnxOptions, kernels, onnxruntime_library, open_exported
from convattn.ops import _native
from convattn.ops._recording import fixed_sizes
from tests.export.networks import IN_ONNX, classifier, detector
from tests.export.single import MATRIX, OneOperator, drawn, name_in_file, ours, recorded, resized
from tests.export.test_export import images
from tests.ops.cases import (
    WINDOWS,
    Acmix,
    Aggregate,
    Attend,
    Geometry,
    GroupConvolution,
    OffsetConvolution,
    PixelShift,
    WindowAttend,
)
from tests.quick import sampled, slow_but

onnx = pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
if not (_native.FOLDER / kernels.LIBRARY).is_file():
    pytest.skip("the operators for other runtimes were not built", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, about how it works

OURS = OnnxOptions(operators="convattn")


def opened(model: Any, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(onnxruntime_library()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: list[Tensor]) -> Tensor:
    given = {one.name: x.numpy() for one, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


@pytest.mark.parametrize(("operator", "geometry"), sampled(MATRIX, 24), ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("threads", [1, 3])
def test_every_operator(operator: Any, geometry: Geometry, threads: int) -> None:
    inputs = drawn(operator, geometry)
    model = recorded(OneOperator(operator, geometry), inputs)
    assert ours(model) == {name_in_file(operator)}
    expected = operator.reference([x.double() for x in inputs], geometry)
    found = run(opened(model, threads), inputs)
    scale = expected.abs().amax().item() if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6 * max(scale, 1.0))


@pytest.mark.parametrize("geometry", WINDOWS, ids=str)
def test_acmix_behind_a_convolution_that_can_be_quantised(geometry: Geometry) -> None:
    inputs = drawn(Acmix, geometry)
    model = recorded(OneOperator(Acmix, geometry), inputs, acmix="acmix")
    assert ours(model) == {"acmix"}
    assert [node.op_type for node in model.graph.node if not node.domain] == ["Conv", "Transpose", "Transpose"]
    expected = Acmix.reference([x.double() for x in inputs], geometry)
    torch.testing.assert_close(run(opened(model), inputs).double(), expected, rtol=0, atol=3e-6 * expected.abs().max())


@pytest.mark.parametrize("operator", [Acmix, Attend])
def test_other_batches_and_sizes_than_the_example(operator: Any) -> None:
    geometry = Geometry(9, 7, 7)
    first = drawn(operator, geometry)
    session = opened(recorded(OneOperator(operator, geometry), first))
    for height, width, batch in ((4, 21, 1), (1, 1, 3), (9, 7, 0)):
        other = Geometry(height, width, 7)
        inputs = resized(operator, other, first, batch)
        expected = operator.run([x.double() for x in inputs], other)
        torch.testing.assert_close(run(session, inputs).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [
        ("num_heads", 7, "channels that the heads do not divide"),
        ("num_heads", 0, "no heads"),
        ("offsets", [0, 0, 1], "odd number"),
        ("offsets", [0, 2000], "more than 1024"),
        ("offsets", [], "no offsets"),
        ("stride", [0, 1], "stride"),
        ("stride", [3, 1], "q of another shape"),
        ("stride", [1], "a stride of another count"),
        ("border", 9, "border"),
    ],
)
def test_a_file_that_lies_is_an_error_of_the_run(attribute: str, value: Any, why: str) -> None:
    geometry = Geometry(5, 4, 3)
    inputs = drawn(Attend, geometry)
    model = recorded(OneOperator(Attend, geometry), inputs)
    (node,) = [node for node in model.graph.node if node.domain == kernels.DOMAIN]
    kept = [one for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value, attr_type=_kind(value))])
    with pytest.raises(Exception, match=rf"convattn\.attend: .*{why}"):
        run(opened(model), inputs)


def _kind(value: Any) -> Any:
    return onnx.AttributeProto.INTS if isinstance(value, list) else onnx.AttributeProto.INT


@pytest.mark.parametrize("operator", [Acmix, Aggregate, GroupConvolution, OffsetConvolution, PixelShift, WindowAttend])
def test_tensors_that_do_not_fit_are_an_error_of_the_run(operator: Any) -> None:
    """Each tensor in turn is longer than the others allow; a map that is the only one may have any size."""
    geometry = WINDOWS[2]
    inputs = drawn(operator, geometry)
    session = opened(_unshaped(recorded(OneOperator(operator, geometry), inputs)))
    only_map = operator in (Acmix, GroupConvolution, OffsetConvolution)
    for place, x in list(enumerate(inputs))[only_map:]:
        longer = torch.cat([x, x[..., :1]], -1)
        given = [longer if other == place else y for other, y in enumerate(inputs)]
        with pytest.raises(Exception, match=r"convattn\.|Invalid|INVALID|FAIL"):
            run(session, given)


def _unshaped(model: Any) -> Any:
    """Without the shapes of its inputs, which onnxruntime would check itself."""
    for one in model.graph.input:
        for size in one.type.tensor_type.shape.dim:
            size.dim_param = f"any{id(size)}"
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("name", slow_but(["acmix_resnet14", "xvolution_resnet14"], IN_ONNX))
def test_networks(name: str, tmp_path: Path) -> None:
    report = convattn.export(classifier(name), tmp_path / "net.onnx", images(), onnx=OURS)
    assert report.difference is not None
    assert report.difference < 1e-4


def test_the_file_says_the_sizes_of_our_outputs() -> None:
    """onnxruntime fuses nothing around an output of unknown shape; what is free in the file stays free."""
    geometry = Geometry(9, 7, 7)
    inputs = [x.float() for x in GroupConvolution.draw(geometry, torch.Generator().manual_seed(0))]
    with fixed_sizes():
        fixed = recorded(OneOperator(GroupConvolution, geometry), inputs)
    channels = GroupConvolution.run(inputs, geometry).shape[1]
    assert _said(fixed) == [0, 9, 7, channels]
    assert _said(recorded(OneOperator(GroupConvolution, geometry), inputs)) == [0, 0, 0, channels]


def _said(model: Any) -> list[int]:
    """The shape of our operator's output in the file, 0 for what is free."""
    (node,) = [node for node in model.graph.node if node.domain == kernels.DOMAIN]
    (value,) = [value for value in model.graph.value_info if value.name == node.output[0]]
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def test_a_network_on_images_of_any_size(tmp_path: Path) -> None:
    net = classifier()
    report = convattn.export(net, tmp_path / "net.onnx", images(), onnx=OURS, sizes="image")
    file, _ = open_exported(report.file)
    x = images(3, (57, 44))
    with torch.no_grad():
        torch.testing.assert_close(file(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_detector(tmp_path: Path) -> None:
    report = convattn.export(detector("mask_rcnn"), tmp_path / "net.onnx", images(1), onnx=OURS)
    assert ours(onnx.load(report.file))
    assert report.difference is not None
    assert report.difference < 1e-3


def test_eight_bits_leave_our_operators_in_float32(tmp_path: Path) -> None:
    net, batch = classifier(), images(8)
    options: dict[str, Any] = {"precision": "int8", "calibration": [batch], "onnx": OURS}
    report = convattn.export(net, tmp_path / "net.onnx", batch, **options)
    model = onnx.load(report.file)
    assert ours(model)
    assert any("Quantize" in node.op_type or "QLinear" in node.op_type for node in model.graph.node)


def test_sessions_in_many_threads() -> None:
    """Each computes on the threads of its own session."""
    geometry = Geometry(9, 7, 7)
    inputs = drawn(Acmix, geometry)
    expected = Acmix.run([x.double() for x in inputs], geometry)
    model = recorded(OneOperator(Acmix, geometry), inputs)
    sessions, wrong = [opened(model, threads) for threads in (1, 2, 2)], []

    def work(session: Any) -> None:
        for _ in range(20):
            if not torch.allclose(run(session, inputs).double(), expected, atol=1e-4):
                wrong.append(session)

    threads = [threading.Thread(target=work, args=(session,)) for session in (*sessions, sessions[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("name", "precision"), [("net.torchscript", "float32"), ("net.onnx", "float16"), ("net.xml", "bfloat16")]
)
def test_other_files_do_not_take_our_operators(name: str, precision: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnx files of float32 or int8 and openvino files of float32 or float16"):
        convattn.export(classifier(), tmp_path / name, images(), precision=precision, onnx=OURS)
    assert not list(tmp_path.iterdir())


def test_without_the_library_the_message_says_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"export with standard operators, or build convattn with GCC"):
        convattn.export(classifier(), tmp_path / "net.onnx", images(), onnx=OURS)
    assert not list(tmp_path.iterdir())
