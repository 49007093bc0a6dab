"""``convattn export`` of a run that was really trained, and the commands that take its file."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from convattn.export.kernels import LIBRARY, has_runtimes_library
from convattn.ops import _native
from tests.cli.conftest import COLORS, Command, paint, train_on

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2", "torchscript": "model.torchscript"}
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, so that what is written into it stays with one test."""
    return Path(shutil.copytree(trained.resolve(), tmp_path / "run"))


@pytest.fixture(scope="module")
def acmix(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a network with operators of ours."""
    if not has_runtimes_library():
        pytest.skip("the operators for other runtimes were not built")
    args = {"channels": [16, 16, 16, 16]}
    return train_on(photos, tmp_path_factory.mktemp("acmix"), model="acmix_resnet14", epochs=1, model_args=args)


def needs(to: str) -> None:
    for package in PACKAGES.get(to, ()):
        pytest.importorskip(package, reason="needs pip install 'convattn[export]'")


@pytest.mark.parametrize("to", FILES)
def test_the_file_answers_as_the_run(command: Command, run: Path, photos: Path, to: str) -> None:
    needs(to)
    made = command("export", run, "--to", to)
    assert (made.code, made.err) == (0, "")
    file = run / FILES[to]
    head, difference, latency, compared, following = made.out.splitlines()
    assert head == f"{file}: images of 32x32, float32"
    assert difference.startswith("largest difference from PyTorch ")
    assert "in PyTorch" in latency
    assert compared == "compared on the run's validation images"
    assert following == f"next  convattn predict --run {file} IMAGE"

    assert_answers_alike(command, run, file, photos)


@pytest.mark.parametrize(
    ("to", "opened_with"),
    [("onnx", str(_native.FOLDER / LIBRARY)), ("openvino", "convattn.export.openvino_operators()")],
    ids=["onnx", "openvino"],
)
def test_a_file_of_our_operators_answers_as_the_run(
    command: Command, acmix: Path, photos: Path, tmp_path: Path, to: str, opened_with: str
) -> None:
    needs(to)
    run = Path(shutil.copytree(acmix.resolve(), tmp_path / "run"))
    file = run / FILES[to]
    made = command("export", run, "--to", to, "--operators", "convattn")
    assert (made.code, made.err) == (0, "")
    assert b"acmix" in file.read_bytes()
    assert f"other programs open it with {opened_with}" in made.out.splitlines()
    assert_answers_alike(command, run, file, photos)


def assert_answers_alike(command: Command, run: Path, file: Path, photos: Path) -> None:
    def rows(source: Path) -> list[dict[str, str]]:
        out = command("predict", photos / "red", "--run", source, "--format", "csv", "--top-k", 1).out
        return list(csv.DictReader(io.StringIO(out)))

    for mine, theirs in zip(rows(run), rows(file), strict=True):
        assert (mine["file"], mine["class"]) == (theirs["file"], theirs["class"])
        assert float(mine["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-4)
    mine, theirs = (json.loads(command("val", "--run", source, "--json").out) for source in (run, file))
    assert theirs["top1"] == mine["top1"]
    assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-3)
    assert theirs["weights"] == str(file)


def test_half_precision_is_named_as_for_other_commands(command: Command, run: Path) -> None:
    needs("openvino")
    made = command("export", run, "--to", "openvino", "--precision", "bf16")
    assert (made.code, made.err) == (0, "")
    head, difference, latency, *_ = made.out.splitlines()
    assert head == f"{run / 'model.xml'}: images of 32x32, bfloat16"
    assert float(difference.split()[4]) < 2e-1
    assert latency.endswith(" ms in bfloat16")


def test_int8_prints_the_figure_before_and_after(command: Command, run: Path) -> None:
    needs("onnx")
    made = command("export", run, "--int8")
    assert made.code == 0
    before = json.loads((run / "summary.json").read_text())["accuracy"]
    line = next(line for line in made.out.splitlines() if line.startswith("top-1 accuracy"))
    assert line.startswith(f"top-1 accuracy {before:.2%} before, ")
    assert abs(float(line.split()[4].rstrip("%")) / 100 - before) < 0.1


def test_another_size_and_other_images(command: Command, run: Path, tmp_path: Path) -> None:
    for name, color in COLORS.items():
        paint(tmp_path / "other" / f"{name}.png", color, 300)
    (tmp_path / "other" / "broken.png").touch()
    out = tmp_path / "new folder" / "net.torchscript"
    made = command("export", run, "--to", "torchscript", "--size", 40, 48, "--data", tmp_path / "other", "--out", out)
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[0] == f"{out}: images of 40x48, float32"
    answers = command("predict", tmp_path / "other" / "red.png", "--run", out, "--format", "json").out
    assert json.loads(answers)[0]["predictions"][0]["class"] == "red"


def test_a_network_by_its_name(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = command("export", "test_resnet", "--to", "torchscript", "--size", 32, 32)
    assert made.code == 0
    assert made.out.splitlines()[0] == "test_resnet.torchscript: images of 32x32, float32"
    assert "compared on noise" in made.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such run or weights; train a model first"),
        (["RUN", "--int8", "--half"], "give one of --int8, --half and --precision"),
        (["RUN", "--half", "--precision", "bf16"], "give one of --int8, --half and --precision"),
        (["RUN", "--precision", "bf16"], "onnx files are not written in bfloat16 here; take openvino"),
        (["RUN", "--to", "torchscript", "--int8"], "torchscript files are not written in int8 here; take onnx"),
        (["RUN", "--to", "coreml"], "pip install coremltools"),
        (["RUN", "--opset", 9], "opset 9: the operators need 16 to 20; give one of these"),
        (["RUN", "--size", 0, 5], "--size must be a height and a width of at least 1, got 0 5"),
        (["RUN", "--out", "net.pth"], "net.pth: a file for onnx ends with .onnx; give it that name"),
        (["RUN", "--data", "nowhere"], "nowhere: no such folder; give --data a folder of images"),
        (["RUN", "--data", "bad"], "bad: none of the images can be read; give a folder of others with --data"),
        (["test_resnet", "--int8"], "--int8 is calibrated on images: give a folder of them with --data"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object], message: str
) -> None:
    needs("onnx")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "page.png").write_text("<html>")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = command("export", *(run if word == "RUN" else word for word in words))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_cannot_be_exported_again(command: Command, run: Path) -> None:
    command("export", run, "--to", "torchscript")
    result = command("export", run / "model.torchscript")
    assert result.code == 2
    assert "this is an exported file; give the run folder that it was made of" in result.err


def test_a_file_runs_on_the_cpu(command: Command, run: Path, photos: Path) -> None:
    command("export", run, "--to", "torchscript")
    result = command("predict", photos / "red", "--run", run / "model.torchscript", "--device", "meta")
    assert result.code == 2
    assert "exported files run on the CPU here, not on meta; leave --device out" in result.err
