"""What conversion does to a YOLO, and what ultralytics then builds, loads and fuses."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

import convattn
from convattn.convert import budget
from convattn.layers import ACmix, XVolution
from convattn.ultralytics import convert
from convattn.ultralytics.hooks import given_modules

CONFIG = "yolov8n.yaml"
NAMES = ["model.8.m.0.cv1.conv", "model.8.m.0.cv2.conv"]


def yolo_of(config: str = CONFIG) -> YOLO:
    """A YOLO whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    yolo = YOLO(config)
    for module in yolo.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return yolo


def output(network: nn.Module) -> Tensor:
    """The decoded output of an image."""
    found: Any = copy.deepcopy(network).eval()(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    while not isinstance(found, Tensor):
        found = found[0]
    return found


def stir(network: nn.Module) -> nn.Module:
    """Let the attention of every X-volution count."""
    for operator in given_modules(network).values():
        nn.init.uniform_(operator.attention_norm.weight, 0.5, 1.0)
        nn.init.uniform_(operator.attention_norm.running_var, 0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (CONFIG, "model.8"),
        ("yolo11n-seg.yaml", "model.8"),
        pytest.param("yolo26n.yaml", ["model.8", "model.23"], marks=pytest.mark.slow),
        pytest.param("yolo26n-pose.yaml", "model.8", marks=pytest.mark.slow),
        ("yolo11n-cls.yaml", "model.5"),
    ],
)
def test_it_computes_what_it_did(config: str, where: str | list[str]) -> None:
    yolo = yolo_of(config)
    before = {name: type(module) for name, module in yolo.model.named_modules()}
    converted = convert(yolo, to="xvolution", where=where)
    torch.testing.assert_close(output(converted.model), output(yolo.model), rtol=0, atol=1e-5)
    assert {type(operator) for operator in given_modules(converted.model).values()} == {XVolution}
    assert {name: type(module) for name, module in yolo.model.named_modules()} == before


def test_the_report_names_every_layer() -> None:
    reports: list[convattn.ConvertReport] = []
    converted = convert(yolo_of(), to="acmix", where="model.8", operator_args={"num_heads": 8}, report=reports.append)
    assert [row.name for row in reports[0].replaced] == NAMES == list(given_modules(converted.model))
    assert {operator.num_heads for operator in converted.model.modules() if hasattr(operator, "num_heads")} == {8}


def test_a_budget_chooses_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LAYER_SECONDS", 0.02)
    monkeypatch.setattr(budget, "NETWORK_SECONDS", 0.05)
    reports: list[convattn.ConvertReport] = []
    example = torch.rand(1, 3, 64, 64)
    convert(yolo_of(), to="xvolution", where="model.8", example=example, budget=1000.0, report=reports.append)
    assert [row.name for row in reports[0].replaced] == NAMES
    assert reports[0].latency_ms is not None


@pytest.mark.parametrize("to", ["xvolution", "acmix"])
def test_fusing_keeps_the_output(to: str) -> None:
    network = convert(yolo_of(), to=to, where="model.8").model.eval()
    if to == "xvolution":
        stir(network)
    expected = output(network)
    fused = copy.deepcopy(network).fuse(verbose=False)
    torch.testing.assert_close(output(fused), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_a_network_of_other_classes_takes_the_operators() -> None:
    source = stir(convert(yolo_of(), to="xvolution", where=["model.8", "model.22"]).model)
    network = DetectionModel(source.yaml, nc=7, verbose=False)
    network.load(source, verbose=False)
    assert given_modules(network).keys() == given_modules(source).keys()
    for name, operator in given_modules(network).items():
        assert all(torch.equal(value, source.get_submodule(name).state_dict()[key]) for key, value in
                   operator.state_dict().items())  # fmt: skip
        assert all(parameter.requires_grad for parameter in operator.parameters())
    assert network.get_submodule(NAMES[0]) is not source.get_submodule(NAMES[0])


class Doubled(nn.Module):
    """Somebody's own module: two convolutions, and no word on its channels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = copy.deepcopy(conv), copy.deepcopy(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def test_any_module_is_taken_along() -> None:
    source = convert(yolo_of(), to=Doubled, where="model.8").model
    network = DetectionModel(source.yaml, verbose=False)
    network.load(source, verbose=False)
    assert {name: type(module) for name, module in given_modules(network).items()} == dict.fromkeys(NAMES, Doubled)
    torch.testing.assert_close(output(network), output(source))
    torch.testing.assert_close(output(copy.deepcopy(source).fuse(verbose=False)), output(source), rtol=1e-4, atol=1e-4)


def test_operators_that_fit_nowhere_are_not_lost_in_silence() -> None:
    source = convert(yolo_of(), to="xvolution", where="model.8").model
    with pytest.raises(ValueError, match=rf"the XVolution {re.escape(NAMES[0])} of the weights fits nothing"):
        DetectionModel("yolov8s.yaml", verbose=False).load(source, verbose=False)


class TestTraining:
    """What ``train()`` would start from."""

    @staticmethod
    def start(monkeypatch: pytest.MonkeyPatch, yolo: YOLO, **settings: Any) -> nn.Module:
        """The network that the trainer is given, at the moment it would train."""
        from ultralytics.models.yolo.detect import DetectionTrainer

        started: list[nn.Module] = []

        class Stop(Exception):
            pass

        def begin(trainer: DetectionTrainer) -> None:
            trainer.setup_model()
            started.append(trainer.model)
            raise Stop

        monkeypatch.setattr(DetectionTrainer, "train", begin)
        monkeypatch.setattr(
            DetectionTrainer, "get_dataset", lambda _: {"nc": 3, "names": dict(enumerate("abc")), "channels": 3}
        )
        with pytest.raises(Stop):
            yolo.train(data="data.yaml", device="cpu", **settings)
        return started[0]

    def test_a_network_converted_by_hand_is_trained(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        yolo = yolo_of()
        yolo.model = convattn.convert(yolo.model, to="xvolution", where="model.8")
        network = self.start(monkeypatch, yolo, project=str(tmp_path))
        assert list(given_modules(network)) == NAMES
        weight = f"{NAMES[0]}.convolution.weight"
        assert torch.equal(network.state_dict()[weight], yolo.model.state_dict()[weight])

    @pytest.mark.parametrize("pretrained", [False, "other.pt"])
    def test_other_weights_would_lose_the_operators(self, pretrained: object) -> None:
        yolo = convert(yolo_of(), to="xvolution", where="model.8")
        with pytest.raises(ValueError, match=rf"without what it was given \({re.escape(NAMES[0])}"):
            yolo.train(data="data.yaml", pretrained=pretrained)

    def test_a_saved_copy_holds_the_operators(self, tmp_path: Path) -> None:
        yolo = convert(yolo_of(), to="xvolution", where="model.8")
        stir(yolo.model)
        yolo.save(tmp_path / "mine.pt")
        again = YOLO(tmp_path / "mine.pt")
        assert list(given_modules(again.model)) == NAMES
        torch.testing.assert_close(output(again.model), output(yolo.model), rtol=1e-2, atol=1e-2)


class TestYaml:
    """Operators by name in a model's YAML."""

    @staticmethod
    def write(folder: Path, row: list[Any]) -> str:
        """yolov8n with another row in place of the convolution that halves the size before layer 8."""
        settings = yaml_model_load(CONFIG)
        settings["backbone"][7] = row
        (folder / "yolov8n-mine.yaml").write_text(yaml.safe_dump(settings))
        return str(folder / "yolov8n-mine.yaml")

    @pytest.mark.parametrize(
        ("name", "kind", "options"), [("ACmix", ACmix, {"num_heads": 8}), ("XVolution", XVolution, {})]
    )
    def test_a_row_is_a_block_around_the_operator(
        self, tmp_path: Path, name: str, kind: type[nn.Module], options: dict[str, Any]
    ) -> None:
        config = self.write(tmp_path, [-1, 1, name, [1024, 3, 2, *([options] if options else [])]])
        network = YOLO(config).model
        operator = network.model[7].conv
        assert type(operator) is kind
        assert (operator.in_channels, operator.out_channels) == (128, 256)  # as wide as yolov8n
        assert network.model[7].np == sum(parameter.numel() for parameter in network.model[7].parameters())
        fused = copy.deepcopy(network).eval().fuse(verbose=False)
        torch.testing.assert_close(output(fused), output(network), rtol=1e-4, atol=1e-4)
        again = DetectionModel(network.yaml, nc=5, verbose=False)
        assert type(again.load(network, verbose=False) or again.model[7].conv) is kind

    def test_channels_are_enough(self, tmp_path: Path) -> None:
        settings = yaml_model_load(CONFIG)
        settings["backbone"].insert(8, [-1, 6, "ACmix", [1024]])  # the scale n keeps a third of the repeats
        for row in settings["head"]:
            sources = row[0] if isinstance(row[0], list) else [row[0]]
            moved = [source + (source >= 8) for source in sources]
            row[0] = moved if isinstance(row[0], list) else moved[0]
        network = DetectionModel(settings, verbose=False)
        assert [type(block.conv) for block in network.model[8]] == [ACmix, ACmix]
        assert output(network).shape == output(DetectionModel(CONFIG, verbose=False)).shape

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([1024, 3, 2, 1], "layer 7 of the model's YAML: ACmix takes [channels, kernel size, stride"),
            ([], "layer 7 of the model's YAML: ACmix takes [channels"),
            ([1024, 3, 2, {"heads": 4}], "layer 7 of the model's YAML: ACmix: "),
            ([1024, 3, 2, {"num_heads": 7}], "layer 7 of the model's YAML: ACmix: "),
        ],
    )
    def test_a_wrong_row_says_where(self, tmp_path: Path, args: list[Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            YOLO(self.write(tmp_path, [-1, 1, "ACmix", args]))


def test_a_name_that_was_registered_before_keeps_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the constructor, as ultralytics passes them to modules that it does not know."""
    from ultralytics.nn import tasks

    monkeypatch.setattr(tasks, "ACmix", ACmix, raising=False)
    rows = ["[-1, 1, Conv, [16, 3, 2]]", "[-1, 1, ACmix, [16, 16]]", "[-1, 1, Conv, [32, 3, 2]]"]
    backbone = "".join(f"  - {row}\n" for row in rows)
    (tmp_path / "n.yaml").write_text(f"nc: 3\nbackbone:\n{backbone}head:\n  - [[0, 2], 1, Detect, [nc]]\n")
    network = YOLO(str(tmp_path / "n.yaml"), task="detect").model
    assert isinstance(network.model[1], ACmix)


class TestErrors:
    def test_a_network_is_no_yolo(self) -> None:
        with pytest.raises(TypeError, match=r"takes a YOLO object of ultralytics, got Conv2d; convattn\.convert takes"):
            convert(nn.Conv2d(3, 3, 3), to="xvolution")  # type: ignore[arg-type]

    def test_an_exported_model_cannot_be_converted(self, tmp_path: Path) -> None:
        (tmp_path / "best.onnx").write_bytes(b"")
        yolo = yolo_of()
        yolo.model, yolo.model_name = None, str(tmp_path / "best.onnx")
        with pytest.raises(TypeError, match=r"best\.onnx', which is no network of PyTorch"):
            convert(yolo, to="xvolution")

    def test_a_fused_network_cannot_be_converted(self) -> None:
        yolo = yolo_of()
        yolo.fuse()
        with pytest.raises(ValueError, match="the network is fused"):
            convert(yolo, to="xvolution")

    def test_a_block_that_merges_kernels_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"is in a RepConv, whose kernels ultralytics adds when it fuses"):
            convert(yolo_of("yolov9t.yaml"), to="xvolution", where="model.4")
