"""Exported files give PyTorch's answers in their runtimes; what cannot be exported leaves no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.errors import UserError
from convattn.export import FORMATS, OnnxOptions, open_exported
from convattn.export.comparison import difference_of_detections, difference_of_tensors
from convattn.export.program import program_of
from convattn.export.runtime import OPENERS, RUN
from convattn.layers.static_convolution import StaticConvolution
from convattn.tasks.inference import EXPORTED
from tests.export.networks import CLASSIFIERS, HEADS, SEGMENTERS, SUFFIXES, classifier, detector, needs, segmenter_of
from tests.quick import slow_but

each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def images(batch: int = 2, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@each_suffix
def test_a_file_runs_on_any_batch_and_says_what_it_is(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    net, said = classifier(), {"classes": '["a \\"b\\" <c>", "é", "d"]', "mean": "[0.5, 0.5, 0.5]"}
    report = convattn.export(net, tmp_path / f"net{suffix}", images(), metadata=said)
    assert report.difference is not None
    assert report.difference < 1e-4
    file, metadata = open_exported(report.file)
    assert {name: metadata[name] for name in said} == said
    assert json.loads(metadata[RUN])["outputs"] == ["logits"]
    x = images(batch=3)
    with torch.no_grad():
        torch.testing.assert_close(file(x), net(x), rtol=1e-4, atol=1e-5)
    extra = [tmp_path / "net.bin"] if suffix == ".xml" else []
    assert sorted(tmp_path.iterdir()) == sorted([report.file, *extra])


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["acmix_pvt_tiny", "acmix_swin_tiny", "xvolution_resnet14"],
        [name for name in CLASSIFIERS if name != "acmix_resnet14"],
    ),
)
@pytest.mark.parametrize("suffix", [".onnx", *(pytest.param(s, marks=pytest.mark.slow) for s in SUFFIXES[1:])])
def test_every_network(name: str, suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    if name == "halo_resnet14" and suffix in (".onnx", ".xml"):
        # torch's exporter does not write timm's unfolding of a map that it padded
        with pytest.raises(UserError, match=r"does not take this network \(ResNet\): .* try another format"):
            convattn.export(classifier(name), tmp_path / f"net{suffix}", images())
        assert not list(tmp_path.iterdir())
        return
    report = convattn.export(classifier(name), tmp_path / f"net{suffix}", images())
    assert report.difference is not None
    assert report.difference < 1e-4


OF_ONE_SIZE = (
    *("involution_resnet14", "lr_resnet14", "aa_resnet14", "bot_resnet14", "halo_resnet14"),
    *("san10", "pairwise_san10", "acmix_san10"),
)
"""torch's exporter to ONNX keeps sizes of the example in them."""


@pytest.mark.parametrize(
    "name", slow_but(["acmix_resnet14"], [name for name in CLASSIFIERS if name not in OF_ONE_SIZE])
)
def test_a_file_for_images_of_any_size(name: str, tmp_path: Path) -> None:
    needs(".onnx")
    net = classifier(name)
    report = convattn.export(net, tmp_path / "net.onnx", images(), sizes="image")
    file, _ = open_exported(report.file)
    x = images(1, (57, 44))
    with torch.no_grad():
        torch.testing.assert_close(file(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", slow_but(["san10"], OF_ONE_SIZE))
def test_a_network_whose_file_would_take_one_size_alone_is_refused(name: str, tmp_path: Path) -> None:
    needs(".onnx")
    with pytest.raises(UserError, match=r"leave --dynamic out") as refused:
        convattn.export(classifier(name), tmp_path / "net.onnx", images(), sizes="image")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", slow_but(["mask_rcnn"], HEADS))
@pytest.mark.parametrize("suffix", [".onnx", ".xml", pytest.param(".torchscript", marks=pytest.mark.slow)])
def test_detectors(head: str, suffix: str, tmp_path: Path) -> None:
    """On images of other sizes than the example: they are scaled, and the boxes and masks brought back."""
    needs(suffix)
    net = detector(head)
    report = convattn.export(net, tmp_path / f"net{suffix}", images(1, (64, 80)))
    assert report.sizes == "image"
    file, _ = open_exported(report.file)
    for size in ((50, 90), (128, 128)):
        one = images(1, size)[0]
        with torch.no_grad():
            expected, found = net([one])[0], file([one])[0]
        assert len(expected["boxes"]) > 3
        assert found.keys() == expected.keys()
        assert difference_of_detections(expected, found) < 1e-3


@pytest.mark.parametrize("head", slow_but(["semantic_fpn"], SEGMENTERS))
@each_suffix
def test_segmenters(head: str, suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    net = segmenter_of(head)
    report = convattn.export(net, tmp_path / f"net{suffix}", images(2, (64, 96)), sizes="image")
    file, _ = open_exported(report.file)
    x = images(1, (67, 45))
    with torch.no_grad():
        torch.testing.assert_close(file(x), net(x), rtol=1e-3, atol=1e-3)


def openvino_constants(file: Path) -> list[np.ndarray]:
    """The real numbers that a file holds."""
    data, kinds = file.with_suffix(".bin").read_bytes(), {"f32": np.float32, "f16": np.float16}
    fields = [field.attrib for field in ElementTree.parse(file).iterfind(".//layer[@type='Const']/data")]
    real = [field for field in fields if field["element_type"] in kinds]
    places = [slice(int(field["offset"]), int(field["offset"]) + int(field["size"])) for field in real]
    return [np.frombuffer(data[place], kinds[field["element_type"]]) for field, place in zip(real, places, strict=True)]


def weight_bytes(file: Path) -> int:
    """Of the weights alone: beside them are the graph and attention's masks, whose -inf OpenVINO keeps in float32."""
    if file.suffix == ".xml":
        return sum(array.nbytes for array in openvino_constants(file) if not np.isinf(array).any())
    import onnx

    return sum(onnx.numpy_helper.to_array(weight).nbytes for weight in onnx.load(file).graph.initializer)


@pytest.mark.parametrize("suffix", slow_but([".onnx"], [".onnx", ".xml"]))
def test_half_precision(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    full = convattn.export(classifier(), tmp_path / f"full{suffix}", images())
    half = convattn.export(classifier(), tmp_path / f"half{suffix}", images(), precision="float16")
    assert half.difference is not None
    assert 1e-5 < half.difference < 5e-2
    full_size, half_size = map(weight_bytes, (full.file, half.file))
    assert half_size < 0.6 * full_size


def test_a_bfloat16_file_is_computed_in_it(tmp_path: Path) -> None:
    """Where the processor has it."""
    needs(".xml")
    import openvino

    report = convattn.export(classifier(), tmp_path / "net.xml", images(), precision="bfloat16")
    assert report.difference is not None
    has_it = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (report.difference > 1e-4) == has_it


def test_int8(tmp_path: Path) -> None:
    needs(".onnx")
    import onnx

    samples = [images(1) for _ in range(2)]
    report = convattn.export(classifier(), tmp_path / "net.onnx", images(), precision="int8", calibration=samples)
    assert report.difference is not None
    assert report.difference < 0.5
    model = onnx.load(report.file)
    weights = {one.name: one.data_type for one in model.graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    assert RUN in {one.key for one in model.metadata_props}


def forms_of(network: nn.Module) -> set[str]:
    return {module.form for module in network.modules() if isinstance(module, StaticConvolution)}


@each_suffix
def test_x_volution_folded_over_gathered_offsets(suffix: str, tmp_path: Path) -> None:
    """On its small maps the offsets that fall outside are left out; the rest is a product of one matrix."""
    needs(suffix)
    net = convattn.optimize(classifier("xvolution_resnet14"), images())
    assert "gathered" in forms_of(net)
    report = convattn.export(net, tmp_path / f"net{suffix}", images())
    assert report.difference is not None
    assert report.difference < 1e-4


def test_forms_are_the_cheapest_for_the_operators_of_the_file() -> None:
    """Standard operators compute the offsets that fall outside too."""
    assert "gathered" not in forms_of(program_of(classifier("xvolution_resnet14"), images()))
    assert "gathered" in forms_of(program_of(classifier("xvolution_resnet14"), images(), "convattn"))


@each_suffix
def test_no_operator_of_ours_is_in_a_file(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    report = convattn.export(classifier(), tmp_path / f"net{suffix}", images())
    if suffix == ".onnx":
        import onnx

        assert {node.domain for node in onnx.load(report.file).graph.node} == {""}
    elif suffix == ".pt2":
        graph = torch.export.load(report.file).graph
        assert not [node for node in graph.nodes if str(node.target).startswith("convattn")]
    elif suffix == ".torchscript":
        assert "convattn::" not in str(torch.jit.load(report.file).inlined_graph)
    else:
        assert 'version="extension"' not in report.file.read_text()


class Branching(nn.Module):
    """Takes a way that depends on how many images there are, which a recorded run does not repeat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if len(x) > 1 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("net", "suffix", "options", "message"),
    [
        (classifier, ".pth", {}, "the end of the name says what to write: .onnx"),
        (classifier, ".onnx", {"precision": "int4"}, "precision must be one of float32, float16, bfloat16, int8"),
        (
            classifier,
            ".torchscript",
            {"precision": "int8"},
            "torchscript files are not written in int8 here; take onnx",
        ),
        (classifier, ".onnx", {"precision": "int8"}, "int8 needs images to set its ranges"),
        (classifier, ".onnx", {"onnx": OnnxOptions(opset=9)}, "opset 9: the operators need 16 to 20"),
        (classifier, ".mlpackage", {}, "pip install coremltools"),
        (Branching, ".torchscript", {}, "answers differ from PyTorch's by .*the file was not kept"),
        (lambda: nn.Linear(7, 3), ".onnx", {}, "does not take images of 64x64: .*give a size that it takes"),
        (lambda: detector("retinanet"), ".pt2", {}, "torch.export does not take a detector"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(net, suffix, options, message, tmp_path) -> None:
    needs(suffix)
    with pytest.raises(UserError, match=message) as raised:
        convattn.export(net(), tmp_path / f"net{suffix}", images(), **options)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", [torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), "photo.jpg"])
def test_an_example_must_be_images(example: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the example must be images \[B, C, H, W\]"):
        convattn.export(classifier(), tmp_path / "net.onnx", example)


def test_a_failed_export_leaves_the_file_before_it(tmp_path: Path) -> None:
    file = tmp_path / "net.torchscript"
    convattn.export(classifier(), file, images())
    before = file.read_bytes()
    with pytest.raises(UserError, match="answers differ"):
        convattn.export(Branching(), file, images())
    assert file.read_bytes() == before


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    needs(".onnx")
    report = convattn.export(classifier(), tmp_path / "net.onnx", images())
    file, _ = open_exported(report.file)
    with pytest.raises(UserError, match=r"cannot run on images of 1x3x32x32: .*export it with --dynamic"):
        file(images(1, (32, 32)))


@each_suffix
def test_a_damaged_file_is_refused(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    (tmp_path / f"net{suffix}").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"cannot be opened: .*; export it again with: convattn export"):
        open_exported(tmp_path / f"net{suffix}")


def test_every_format_has_a_suffix_of_its_own() -> None:
    """And ``load_model`` knows those that a runtime here opens."""
    assert len({one.suffix for one in FORMATS.values()}) == len(FORMATS)
    assert set(EXPORTED) == OPENERS.keys() <= {one.suffix for one in FORMATS.values()}


class TestDifference:
    """The comparison is shown answers that differ, so that one that has stopped looking is noticed."""

    ONE: ClassVar = {
        "boxes": torch.tensor([[0.0, 0, 8, 8]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([2]),
    }

    def test_of_tensors(self) -> None:
        a = torch.tensor([1.0, -4.0])
        assert difference_of_tensors([a], [a]) == 0
        assert difference_of_tensors([a], [a + 1]) == 0.25
        assert difference_of_tensors([a], [a[:1]]) == float("inf")
        assert not difference_of_tensors([a], [a * float("nan")]) < 1

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, 0.0),
            ({"scores": torch.tensor([0.7])}, 0.2),
            ({"boxes": torch.tensor([[0.0, 0, 8, 4]])}, 0.5),
            ({"labels": torch.tensor([1])}, 1.0),
            ({name: value[:0] for name, value in ONE.items()}, 1.0),
        ],
    )
    def test_of_objects(self, change: dict[str, Tensor], expected: float) -> None:
        for pair in ((self.ONE, self.ONE | change), (self.ONE | change, self.ONE)):
            assert difference_of_detections(*pair) == pytest.approx(expected)
