"""A converted YOLO through its whole life, by ultralytics itself: train, reopen, resume, predict, export."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics import YOLO
from ultralytics.utils.dist import generate_ddp_file

from convattn.ultralytics import convert
from convattn.ultralytics.hooks import given_modules
from tests.ultralytics.scenes import SIDE, Task, write_data

LIVES: dict[str, tuple[Task, str, str]] = {
    "yolov8n.yaml": ("detect", "xvolution", "model.8"),
    "yolo11n.yaml": ("detect", "acmix", "model.8"),
    "yolo26n.yaml": ("detect", "xvolution", "model.8"),
    "yolov8n-seg.yaml": ("segment", "acmix", "model.8"),
    "yolo11n-seg.yaml": ("segment", "xvolution", "model.8"),
    "yolo26n-pose.yaml": ("pose", "xvolution", "model.8"),
    "yolo11n-cls.yaml": ("classify", "acmix", "model.5"),
}
QUICK = "yolov8n.yaml"
SETTINGS = {
    "epochs": 2, "imgsz": SIDE, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "exist_ok": True,
    "optimizer": "SGD", "warmup_epochs": 0, "verbose": False,
}  # fmt: skip

PREDICT = """
import sys
import numpy
from ultralytics import YOLO
assert "convattn" not in sys.modules
sys.path.insert(0, {root!r})
from tests.ultralytics.test_life import answers
numpy.save(sys.argv[3], answers(YOLO(sys.argv[1]), sys.argv[2]))
"""
RESUME = "import sys; from ultralytics import YOLO; YOLO(sys.argv[1]).train(resume=True)"


@dataclass(frozen=True)
class Life:
    """A YOLO that was converted and trained."""

    yolo: YOLO
    trained: YOLO
    folder: Path
    image: Path

    @property
    def best(self) -> Path:
        return self.folder / "run" / "weights" / "best.pt"

    @property
    def sure(self) -> Path:
        """The best weights with a head and batch norms that tell objects apart: the order of equal scores is open."""
        path = self.best.with_name("sure.pt")
        if not path.exists():
            yolo, noise = YOLO(self.best), torch.Generator().manual_seed(0)
            for name, parameter in yolo.model.model[-1].named_parameters():
                if re.search(r"(cv3\.\d\.2|linear)\.weight", name):
                    parameter.data += torch.randn(parameter.shape, generator=noise)
            images = [np.asarray(Image.open(image)) for image in sorted(self.folder.glob("data/**/val/**/*.png"))]
            estimate_batch_norms(yolo.model, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
            yolo.save(path)
        return path


def estimate_batch_norms(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Set the statistics to those of these images: two short epochs hardly move them, so that all answers are alike."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep OpenVINO from computing in half precision, as it does where a CPU can: close scores would change places."""
    openvino = pytest.importorskip("openvino")
    original = openvino.Core.compile_model

    def compile_model(core: Any, *args: Any, config: dict[str, Any] | None = None, **others: Any) -> Any:
        return original(core, *args, config={**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **others)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)


def answers(yolo: YOLO, image: str | Path) -> np.ndarray:
    """What a YOLO says of an image, a row for each object, the surest first."""
    (result,) = yolo.predict(str(image), imgsz=SIDE, conf=1e-6, max_det=10, verbose=False, device="cpu")
    if result.probs is not None:
        return result.probs.data.numpy()[None]
    rows = result.boxes.data.numpy()
    return rows if result.keypoints is None else np.c_[rows, result.keypoints.data.numpy().reshape(len(rows), -1)]


def run(script: str, *args: object) -> None:
    done = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def states(network: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    return {name: operator.state_dict() for name, operator in given_modules(network).items()}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow, id=name[:-5]) for name in LIVES],
)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    task, to, where = LIVES[request.param]
    data = write_data(folder / "data", task)
    torch.manual_seed(0)
    yolo = convert(YOLO(request.param), to=to, where=where)
    trained = convert(YOLO(request.param), to=to, where=where)
    trained.model.load_state_dict(yolo.model.state_dict())
    trained.train(data=data, project=str(folder), name="run", **SETTINGS)
    image = next((folder / "data").rglob("val/**/*.png"))
    return Life(yolo, trained, folder, image)


class TestLife:
    def test_the_operators_are_trained(self, life: Life) -> None:
        before, after = states(life.yolo.model), states(life.trained.model)
        assert before.keys() == after.keys() != set()
        for name, state in before.items():
            assert any(not torch.equal(value.half(), after[name][key].half()) for key, value in state.items()), name
        gates = [value for state in after.values() for key, value in state.items() if key == "attention_norm.weight"]
        assert all(gate.count_nonzero() == gate.numel() for gate in gates)

    def test_another_process_reads_the_same(self, life: Life) -> None:
        expected = answers(YOLO(life.best), life.image)
        assert len(expected) > 0
        run(PREDICT.format(root=str(Path(__file__).parents[2])), life.best, life.image, life.folder / "other.npy")
        np.testing.assert_allclose(np.load(life.folder / "other.npy"), expected, rtol=1e-4, atol=1e-4)

    def test_it_validates(self, life: Life) -> None:
        metrics = YOLO(life.best).val(data=life.trained.trainer.args.data, imgsz=SIDE, batch=4, workers=0, plots=False)
        assert np.isfinite(metrics.fitness)

    @pytest.mark.parametrize(
        ("format", "file"),
        [
            ("onnx", "sure.onnx"),
            pytest.param("torchscript", "sure.torchscript", marks=pytest.mark.slow),
            pytest.param("openvino", "sure_openvino_model", marks=pytest.mark.slow),
        ],
    )
    def test_an_exported_file_says_the_same(
        self, life: Life, format: str, file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if format == "openvino":
            compute_in_float32(monkeypatch)
        yolo = YOLO(life.sure)
        expected = answers(yolo, life.image)
        settings = {"simplify": False} if format == "onnx" else {}
        YOLO(life.sure).export(format=format, imgsz=SIDE, verbose=False, device="cpu", **settings)
        found = answers(YOLO(life.sure.with_name(file), task=yolo.task), life.image)
        assert found.shape == expected.shape
        for row in expected:
            nearest = found[np.abs(found - row).max(1).argmin()]
            np.testing.assert_allclose(nearest, row, rtol=0.005, atol=0.05)


class Interrupted(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("config", [QUICK, "yolo11n.yaml", "yolo26n-pose.yaml"])
def test_another_process_resumes(config: str, tmp_path: Path) -> None:
    task, to, where = LIVES[config]
    data = write_data(tmp_path / "data", task)
    yolo = convert(YOLO(config), to=to, where=where)

    def stop(trainer: object) -> None:
        raise Interrupted

    yolo.add_callback("on_model_save", stop)
    with pytest.raises(Interrupted):
        yolo.train(data=data, project=str(tmp_path), name="run", **SETTINGS)
    last = tmp_path / "run" / "weights" / "last.pt"
    first = states(YOLO(last).model)
    run(RESUME, last)
    assert (tmp_path / "run" / "results.csv").read_text().count("\n") == 3
    second = states(YOLO(last).model)
    assert first.keys() == second.keys() != set()
    assert any(not torch.equal(value, second[name][key]) for name in first for key, value in first[name].items())


@pytest.mark.slow
def test_the_script_of_a_second_process_trains_the_operators(tmp_path: Path) -> None:
    """With several GPUs ultralytics writes the trainer into a file, which the other processes run."""
    pytest.importorskip("cloudpickle")
    data = write_data(tmp_path / "data", "detect")
    yolo = convert(YOLO(QUICK), to="xvolution", where="model.8")
    trainer = yolo._smart_load("trainer")(
        overrides={**yolo.overrides, "data": data, "project": str(tmp_path), "name": "run", **SETTINGS}
    )
    trainer.model = trainer.get_model(weights=yolo.model, cfg=yolo.model.yaml)
    script = Path(generate_ddp_file(trainer))
    try:
        run(script.read_text())
    finally:
        script.unlink()
        script.with_suffix(".pt").unlink()
    assert states(YOLO(tmp_path / "run" / "weights" / "best.pt").model).keys() == states(yolo.model).keys()
