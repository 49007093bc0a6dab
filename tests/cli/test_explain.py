"""``convattn explain`` of a run of every task, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.dense import TASKS
from tests.report.reading import read_page

ATTENTION = {"What one pixel attends to", "Attention and convolution"}


def test_a_classifier(command: Command, trained: Path, photos: Path, here: Path) -> None:
    found = command("explain", trained, photos / "red" / "00.png")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].startswith(f"{photos / 'red' / '00.png'}: red, ")
    assert "this network has none of them, so there is Grad-CAM alone" in lines[1]
    assert lines[2:] == ["page        00-explained.html", "next        open 00-explained.html in a browser"]
    page = read_page(here / "00-explained.html")
    assert page.headings == ["The answer in numbers", "What one pixel attends to", "Go on"]
    assert "Grad-CAM of red" in page.text


@pytest.mark.parametrize("task", TASKS)
def test_a_network_with_attention(command: Command, runs: dict[str, Path], images: Path, task: str) -> None:
    photo = images / "odd one.jpg"  # 61 x 37
    words = [] if task == "segmentation" else ["--min-score", 0]
    found = command("explain", runs[task], photo, "--pixel", 60, 36, "--out", "look.html", *words)
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[1:] == [
        "page        look.html",
        "next        open look.html in a browser; other pixels: --pixel X Y",
    ]
    page = read_page(Path("look.html"))
    assert set(page.headings) >= ATTENTION
    assert "The pixel (60, 36) of the photograph." in page.text
    assert "layer4.1.conv2.attention" in page.text
    assert f"convattn explain {runs[task]} '{photo}' --pixel 10 10 --out look.html" in page.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{photo}", "--pixel", "24", "0"], "pixel 24 0 is not on {photo}, which is 24 pixels wide"),
        (["{run}", "{photos}"], "{photos}: holds 61 images; explain takes one"),
        (["{run}", "{photos}/red/broken.png"], "{photos}/red/broken.png: the file is empty"),
        (["{run}", "nowhere.jpg"], "nowhere.jpg: "),
        (["nowhere", "{photo}"], "nowhere: no such run or weights; train a model first with: convattn train"),
        (["{run}", "{photo}", "--out", "look.png"], "look.png: the explanation is an HTML page; give --out a name"),
        (["{run}", "{photo}", "--out", "mine.html"], "mine.html: is another file, which would be written over"),
        (["{run}", "{photo}", "--out", "no/such/look.html"], "No such file or directory"),
    ],
)
def test_what_is_refused(
    command: Command, trained: Path, photos: Path, here: Path, words: list[str], message: str
) -> None:
    (here / "mine.html").write_text("<p>mine</p>")
    names = {"run": trained, "photos": photos, "photo": photos / "red" / "00.png"}
    found = command("explain", *(word.format(**names) for word in words))
    assert (found.code, found.out) == (2, "")
    assert message.format(**names) in found.err
    assert len(found.err.splitlines()) == 1


def test_weights_alone_and_an_exported_file(command: Command, trained: Path, photos: Path, here: Path) -> None:
    shutil.copy(trained / "weights.safetensors", here)
    assert command("explain", "weights.safetensors", photos / "blue" / "00.png").code == 0
    assert command("export", trained, "--out", "model.onnx").code == 0
    found = command("explain", "model.onnx", photos / "blue" / "00.png")
    assert found.code == 2
    assert "model.onnx: an exported file has no layers to look into; give the run or the weights" in found.err
