"""OpenVINO's files of our own operators: its answers by the CPU kernels, on every shape of the contract."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convattn
from convattn.errors import UserError
from convattn.export import OnnxOptions, kernels, open_exported, openvino_operators
from convattn.export.kernels import has_runtimes_library
from convattn.ops import _native
from tests.export.networks import IN_ONNX, classifier, detector
from tests.export.single import MATRIX, OneOperator, drawn, name_in_file, recorded, resized
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

pytest.importorskip("onnx", reason="needs pip install 'convattn[export]'")
openvino = pytest.importorskip("openvino", reason="needs pip install 'convattn[export]'")
if not has_runtimes_library():
    pytest.skip("the operators for other runtimes were not built", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, about how it works

OURS = OnnxOptions(operators="convattn")


def read(operator: Any, geometry: Geometry, inputs: list[Tensor], file: Path) -> Any:
    """An operator's network as OpenVINO has it after a file of its own; the weights have their sizes."""
    core = openvino.Core()
    core.add_extension(openvino_operators())
    model = core.read_model(recorded(OneOperator(operator, geometry), inputs).SerializeToString())
    weights = {place: x for place, x in enumerate(inputs) if x.dim() == 4 and x.shape[0] != 2}
    openvino.save_model(of_sizes(model, weights), file, compress_to_fp16=False)
    return core.read_model(file)


def of_sizes(model: Any, inputs: Mapping[int, Tensor]) -> Any:
    fixed = model.clone()
    fixed.reshape({place: openvino.PartialShape(list(x.shape)) for place, x in inputs.items()})
    return fixed


def run_on(model: Any, inputs: list[Tensor]) -> Tensor:
    return run(compiled(of_sizes(model, dict(enumerate(inputs)))), inputs)


def types(model: Any) -> set[str]:
    return {op.get_type_name() for op in model.get_ops() if op.get_type_name().startswith("convattn_")}


def compiled(model: Any, threads: int = 2) -> Any:
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", settings)


def run(program: Any, inputs: list[Tensor]) -> Tensor:
    return torch.from_numpy(program([x.numpy() for x in inputs])[0].copy())


@pytest.mark.parametrize(("operator", "geometry"), sampled(MATRIX, 24), ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("threads", [1, 3])
def test_every_operator(operator: Any, geometry: Geometry, threads: int, tmp_path: Path) -> None:
    """With sizes that are free, and with fixed ones, where maps are not copied."""
    inputs = drawn(operator, geometry)
    model = read(operator, geometry, inputs, tmp_path / "net.xml")
    assert types(model) == {f"convattn_{name_in_file(operator)}"}
    if threads > 1:
        model = of_sizes(model, dict(enumerate(inputs)))
    expected = operator.reference([x.double() for x in inputs], geometry)
    found = run(compiled(model, threads), inputs)
    scale = expected.abs().amax().item() if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6 * max(scale, 1.0))


@pytest.mark.parametrize("operator", [Acmix, Attend])
def test_other_batches_and_sizes_than_the_example(operator: Any, tmp_path: Path) -> None:
    geometry = Geometry(9, 7, 7)
    first = drawn(operator, geometry)
    program = compiled(read(operator, geometry, first, tmp_path / "net.xml"))
    for height, width, batch in ((4, 21, 1), (1, 1, 3), (9, 7, 0)):
        other = Geometry(height, width, 7)
        inputs = resized(operator, other, first, batch)
        expected = operator.run([x.double() for x in inputs], other)
        torch.testing.assert_close(run(program, inputs).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [
        ("num_heads", "7", "channels that the heads do not divide"),
        ("num_heads", "0", "no heads"),
        ("offsets", "0, 0, 1", "odd number"),
        ("offsets", "0, 2000", "more than 1024"),
        ("offsets", "", "no offsets"),
        ("stride", "0, 1", "stride"),
        ("stride", "3, 1", "q of another shape"),
        ("stride", "1", "a stride of another count"),
        ("border", "9", "border"),
    ],
)
def test_a_file_that_lies_is_an_error(attribute: str, value: str, why: str, tmp_path: Path) -> None:
    geometry, file = Geometry(5, 4, 3), tmp_path / "net.xml"
    inputs = drawn(Attend, geometry)
    read(Attend, geometry, inputs, file)
    before, _, after = file.read_text().partition(f' {attribute}="')
    file.write_text(f'{before} {attribute}="{value}"{after.partition(chr(34))[2]}')
    core = openvino.Core()
    core.add_extension(openvino_operators())
    with pytest.raises(RuntimeError, match=rf"convattn\.attend: .*{why}"):
        run(compiled(core.read_model(file)), inputs)


@pytest.mark.parametrize("operator", [Acmix, Aggregate, GroupConvolution, OffsetConvolution, PixelShift, WindowAttend])
def test_tensors_that_do_not_fit_are_an_error(operator: Any, tmp_path: Path) -> None:
    """Each tensor in turn is longer than the others allow.

    A map that is the only one may have any size, and OpenVINO's own convolution before ACmix any kernel.
    """
    geometry = WINDOWS[2]
    inputs = drawn(operator, geometry)
    model = read(operator, geometry, inputs, tmp_path / "net.xml")
    first = {Acmix: 2, GroupConvolution: 1, OffsetConvolution: 1}.get(operator, 0)
    for place, x in list(enumerate(inputs))[first:]:
        longer = torch.cat([x, x[..., :1]], -1)
        given = [longer if other == place else y for other, y in enumerate(inputs)]
        with pytest.raises(RuntimeError, match=r"convattn\.|Incompatible|[Ss]hape"):
            run_on(model, given)


@pytest.mark.parametrize("name", slow_but(["acmix_resnet14", "xvolution_resnet14"], IN_ONNX))
def test_networks(name: str, tmp_path: Path) -> None:
    report = convattn.export(classifier(name), tmp_path / "net.xml", images(), onnx=OURS)
    assert report.difference is not None
    assert report.difference < 1e-4


def test_a_network_on_images_of_any_size(tmp_path: Path) -> None:
    net = classifier()
    report = convattn.export(net, tmp_path / "net.xml", images(), onnx=OURS, sizes="image")
    file, _ = open_exported(report.file)
    for x in (images(3, (57, 44)), images(1, (64, 64)), images(3, (57, 44))):
        with torch.no_grad():
            torch.testing.assert_close(file(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_detector(tmp_path: Path) -> None:
    report = convattn.export(detector("mask_rcnn"), tmp_path / "net.xml", images(1), onnx=OURS)
    assert "convattn_" in report.file.read_text()
    assert report.difference is not None
    assert report.difference < 1e-3


def test_half_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    net, x = classifier(), images()
    whole = convattn.export(net, tmp_path / "net.xml", x, onnx=OURS)
    half = convattn.export(net, tmp_path / "half.xml", x, onnx=OURS, precision="float16")
    sizes = [report.file.with_suffix(".bin").stat().st_size for report in (half, whole)]
    assert sizes[0] < 0.7 * sizes[1]
    assert half.difference is not None
    assert 1e-5 < half.difference < 1e-2


def test_requests_in_many_threads(tmp_path: Path) -> None:
    geometry = Geometry(9, 7, 7)
    inputs = drawn(Acmix, geometry)
    expected = Acmix.run([x.double() for x in inputs], geometry)
    model = read(Acmix, geometry, inputs, tmp_path / "net.xml")
    programs, wrong = [compiled(model, threads) for threads in (1, 2, 2)], []

    def work(program: Any) -> None:
        request = program.create_infer_request()
        for _ in range(20):
            found = request.infer([x.numpy() for x in inputs])[0]
            if not np.allclose(found, expected.numpy(), atol=1e-4):
                wrong.append(program)

    threads = [threading.Thread(target=work, args=(program,)) for program in (*programs, programs[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_the_library_the_message_says_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = convattn.export(classifier(), tmp_path / "kept" / "net.xml", images(), onnx=OURS).file
    monkeypatch.setattr(_native, "FOLDER", tmp_path)
    advice = r"export with standard operators, or build convattn with GCC"
    with pytest.raises(UserError, match=advice):
        convattn.export(classifier(), tmp_path / "net.xml", images(), onnx=OURS)
    assert not (tmp_path / "net.xml").exists()
    with pytest.raises(UserError, match=advice):
        open_exported(file)


def test_only_the_size_of_the_file_is_taken(tmp_path: Path) -> None:
    file, _ = open_exported(convattn.export(classifier(), tmp_path / "net.xml", images(), onnx=OURS).file)
    assert file(images(3)).shape == (3, 3)
    with pytest.raises(UserError, match=r"images of 2x3x57x44: its images are \[\?,3,\d+,\d+\]; give the size"):
        file(images(2, (57, 44)))


def test_openvino_without_our_operators_names_what_it_misses(tmp_path: Path) -> None:
    file = convattn.export(classifier(), tmp_path / "net.xml", images(), onnx=OURS).file
    with pytest.raises(RuntimeError, match=r"convattn_\w+.*unsupported opset"):
        openvino.Core().read_model(file)


def test_openvino_reads_an_onnx_file_of_ours_too() -> None:
    geometry = Geometry(9, 7, 7)
    inputs = drawn(Attend, geometry)
    core = openvino.Core()
    core.add_extension(openvino_operators())
    program = compiled(core.read_model(recorded(OneOperator(Attend, geometry), inputs).SerializeToString()))
    torch.testing.assert_close(run(program, inputs), Attend.run(inputs, geometry), rtol=0, atol=1e-5)


def test_every_operator_of_the_library_has_a_shape() -> None:
    from convattn.export.openvino_extension import _SHAPES

    assert tuple(_SHAPES) == kernels.OPERATORS
