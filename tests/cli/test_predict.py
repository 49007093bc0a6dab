"""``convattn predict`` on a run that was really trained."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import convattn
from tests.cli.conftest import COLORS, Command, paint


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image of each colour and two that cannot be read."""
    for index, (name, color) in enumerate(COLORS.items()):
        paint(tmp_path / "new" / f"my {name} [one].png", color, 100 + index)
    (tmp_path / "new" / "empty.jpg").touch()
    (tmp_path / "new" / "page.png").write_text("<html>")
    return tmp_path / "new"


def test_json_is_clean_and_bad_images_are_on_stderr(command: Command, trained: Path, images: Path) -> None:
    result = command("predict", images, "--run", trained, "--top-k", 2, "--format", "json")
    answers = json.loads(result.out)
    assert result.code == 0
    assert [Path(answer["file"]).name for answer in answers] == [f"my {name} [one].png" for name in COLORS]
    assert [answer["predictions"][0]["class"] for answer in answers] == list(COLORS)
    for answer in answers:
        first, second = (one["probability"] for one in answer["predictions"])
        assert 1 >= first >= second >= 0
    assert "2 of 5 images could not be read and were left out:" in result.err
    assert f"{images / 'empty.jpg'}: the file is empty" in result.err
    assert f"{images / 'page.png'}: not an image that Pillow can read" in result.err


def test_csv(command: Command, trained: Path, images: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(command("predict", images, "--run", trained, "--format", "csv").out)))
    assert [(row["rank"], row["class"]) for row in rows[::3]] == [("1", name) for name in COLORS]
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-5)


def test_the_table_shows_names_as_they_are(command: Command, trained: Path, images: Path) -> None:
    result = command("predict", images / "my red [one].png", "--run", trained)
    head, row = result.out.splitlines()
    assert head.split() == ["image", "class", "probability", "then"]
    assert "my red [one].png" in row
    assert " red " in row
    assert row.count("%") == 3
    assert result.err == ""


@pytest.mark.parametrize("kind", ["table", "json", "csv"])
def test_out_writes_a_file(command: Command, trained: Path, images: Path, tmp_path: Path, kind: str) -> None:
    arguments = ["predict", images, "--run", trained, "--format", kind]
    printed = command(*arguments).out
    result = command(*arguments, "--out", tmp_path / "answers")
    assert result.out == ""
    assert (tmp_path / "answers").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize(("kind", "out"), [("json", "[]\n"), ("csv", "file,rank,class,probability\n"), ("table", "")])
def test_nothing_readable_is_exit_code_2(command: Command, trained: Path, images: Path, kind: str, out: str) -> None:
    result = command("predict", images / "empty.jpg", images / "gone.png", "--run", trained, "--format", kind)
    assert (result.code, result.out) == (2, out)
    assert "2 of 2 images could not be read" in result.err
    assert "gone.png: no such file" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.jpg"], "runs/latest: no such run or weights; train a model first with: convattn train"),
        (["photo.jpg", "--run", "."], ".: not a run folder"),
        (["."], ".: no images in this folder"),
        (["photo.jpg", "--top-k", "0"], "Invalid value for '--top-k'"),
        (["photo.jpg", "--format", "xml"], "Invalid value for '--format'"),
        ([], "Missing argument"),
    ],
)
def test_mistakes(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("predict", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in " ".join(result.err.split())


def test_out_in_a_folder_that_is_not_there(command: Command, trained: Path, images: Path) -> None:
    result = command("predict", images, "--run", trained, "--out", images / "no" / "answers.json")
    assert result.code == 2
    assert "answers.json: cannot be written: No such file or directory" in " ".join(result.err.split())


def test_a_device_that_is_not_here(command: Command, trained: Path, images: Path) -> None:
    result = command("predict", images, "--run", trained, "--device", "cuda:99")
    assert result.code == 2
    assert "device 'cuda:99' cannot be used here" in result.err


def test_in_a_process_of_its_own(images: Path) -> None:
    argv = ["convattn", "predict", str(images), "--run", "gone", "--format", "json"]
    code = f"import sys; sys.argv = {argv!r}; from convattn.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "convattn: gone: no such run or weights; train a model first with: convattn train\n"


def test_the_version(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.out) == (0, f"convattn {convattn.__version__}\n")


def test_help_has_examples(command: Command) -> None:
    result = command("predict", "--help")
    assert result.code == 0
    assert "convattn predict photo.jpg" in result.out


def test_half_precision_gives_the_same_classes(command: Command, trained: Path, images: Path) -> None:
    wanted = ["predict", images / "my red [one].png", "--run", trained, "--format", "json"]
    (whole,), (half,) = (json.loads(command(*wanted, *more).out) for more in ((), ("--precision", "bf16")))
    for one, other in zip(whole["predictions"], half["predictions"], strict=True):
        assert one["class"] == other["class"]
        assert other["probability"] == pytest.approx(one["probability"], abs=0.05)
    assert whole != half
