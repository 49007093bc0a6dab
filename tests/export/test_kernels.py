"""ONNX files of our own operators: onnxruntime's answers by the CPU kernels, on every shape of the contract."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.errors import UserError
from convattn.export import OnnxOptions, kernels, onnxruntime_library, open_exported
from convattn.ops import _native
from convattn.ops._recording import fixed_sizes
from tests.export.networks import CLASSIFIERS, classifier, detector
from tests.export.test_export import images
from tests.ops.cases import (
    GEOMETRIES,
    RESIZED,
    RESIZED_WINDOWS,
    WINDOWS,
    Acmix,
    Aggregate,
    Attend,
    Correlate,
    Geometry,
    GroupConvolution,
    OffsetConvolution,
    PixelShift,
    PixelShiftProduct,
    WindowAttend,
)
from tests.quick import sampled, slow_but

onnx = pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
if not (_native.FOLDER / kernels.LIBRARY).is_file():
    pytest.skip("the library for onnxruntime was not built", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, about how it works

OURS = OnnxOptions(operators="convattn")

BY_OFFSETS = [Attend, Correlate, Aggregate, PixelShift, PixelShiftProduct, OffsetConvolution]
OTHERS = [o for o in RESIZED if o.name.split("-")[0] in ("attend", "correlate", "aggregate", "offset_convolution")]
MATRIX = [
    *((operator, geometry) for operator in BY_OFFSETS for geometry in GEOMETRIES),
    *((operator, geometry) for operator in (WindowAttend, Acmix, GroupConvolution) for geometry in WINDOWS),
    *((operator, geometry) for operator in OTHERS for geometry in (GEOMETRIES[1], GEOMETRIES[6])),
    *((operator, geometry) for operator in RESIZED_WINDOWS for geometry in (WINDOWS[1], Geometry(3, 5, 7))),
]


class OneOperator(nn.Module):
    """An operator as a network of its tensors."""

    def __init__(self, operator: Any, geometry: Geometry) -> None:
        super().__init__()
        self.operator, self.geometry = operator, geometry

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.operator.run(inputs, self.geometry)
        return found


def recorded(network: nn.Module, inputs: list[Tensor], free: bool = True) -> Any:
    """The ONNX model of a network, with our operators in it; the maps' batch and sizes are free."""
    names = [f"input{place}" for place in range(len(inputs))]
    axes = {name: {0: "b", **({2: "h", 3: "w"} if x.dim() == 4 else {})} for name, x in zip(names, inputs, strict=True)}
    data = io.BytesIO()
    with kernels.recorded():
        torch.onnx.export(
            network,
            tuple(inputs),
            data,
            dynamo=False,
            input_names=names,
            output_names=["out"],
            dynamic_axes=axes if free else None,
            opset_version=18,
            custom_opsets={kernels.DOMAIN: 1},
        )
    return onnx.load_model_from_string(data.getvalue())


def opened(model: Any, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(onnxruntime_library()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: list[Tensor]) -> Tensor:
    given = {one.name: x.numpy() for one, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


def ours(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node if node.domain == kernels.DOMAIN}


@pytest.mark.parametrize(("operator", "geometry"), sampled(MATRIX, 24), ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("threads", [1, 3])
def test_every_operator(operator: Any, geometry: Geometry, threads: int) -> None:
    inputs = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    model = recorded(OneOperator(operator, geometry), inputs)
    assert ours(model) == {operator.name.split("-")[0]}
    expected = operator.reference([x.double() for x in inputs], geometry)
    found = run(opened(model, threads), inputs)
    scale = expected.abs().amax().item() if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6 * max(scale, 1.0))


@pytest.mark.parametrize("operator", [Acmix, Attend])
def test_other_batches_and_sizes_than_the_example(operator: Any) -> None:
    geometry = Geometry(9, 7, 7)
    first = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    session = opened(recorded(OneOperator(operator, geometry), first))
    for height, width, batch in ((4, 21, 1), (1, 1, 3), (9, 7, 0)):
        other = Geometry(height, width, 7)
        drawn = operator.draw(other, torch.Generator().manual_seed(1))
        inputs = [
            x.float()[:1].expand(batch, *x.shape[1:]).contiguous() if x.dim() == 4 and x.shape[0] == 2 else y
            for x, y in zip(drawn, first, strict=True)
        ]
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
        ("border", 9, "border"),
    ],
)
def test_a_file_that_lies_is_an_error_of_the_run(attribute: str, value: Any, why: str) -> None:
    geometry = Geometry(5, 4, 3)
    inputs = [x.float() for x in Attend.draw(geometry, torch.Generator().manual_seed(0))]
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
    inputs = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
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


@pytest.mark.parametrize("name", slow_but(["acmix_resnet14", "xvolution_resnet14"], CLASSIFIERS))
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
    inputs = [x.float() for x in Acmix.draw(geometry, torch.Generator().manual_seed(0))]
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


@pytest.mark.parametrize(("name", "precision"), [("net.xml", "float32"), ("net.onnx", "float16")])
def test_other_files_do_not_take_our_operators(name: str, precision: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnx files of float32 or int8"):
        convattn.export(classifier(), tmp_path / name, images(), precision=precision, onnx=OURS)
    assert not list(tmp_path.iterdir())


def test_without_the_library_the_message_says_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"export with standard operators, or build convattn with GCC"):
        convattn.export(classifier(), tmp_path / "net.onnx", images(), onnx=OURS)
    assert not list(tmp_path.iterdir())
