"""``convattn cost``."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_published_beside_counted(command: Command) -> None:
    result = command("cost", "acmix_resnet50", "acmix_swin_tiny", "acmix_pvt_tiny", "acmix_san19")
    assert result.code == 0, result.err
    lines = {line.split()[0]: line.split() for line in result.out.split("\n\n")[0].splitlines()[2:]}
    assert lines["acmix_resnet50"] == ["acmix_resnet50", "18.33", "18.6", "-1.4", "%", "3.553", "3.6", "-1.3", "%"]
    assert lines["acmix_swin_tiny"][1:3] == ["28.65", "30"]
    assert lines["acmix_pvt_tiny"][5:7] == ["2.005", "2.0"]
    assert lines["acmix_san19"][5:7] == ["3.317", "3.4"]
    for word in ("attention", "fc", "group conv", "formulas I", "rest", "0.350", "0.35", "next: convattn cost --plot"):
        assert word in result.out


def test_json_and_csv(command: Command, tmp_path: Path) -> None:
    (found,) = json.loads(command("cost", "acmix_resnet14", "--json", "--size", 33, 65).out)
    assert (found["model"], found["height"], found["width"], found["published"]) == ("acmix_resnet14", 33, 65, None)
    result = command("cost", "acmix_resnet14", "conv_resnet14", "--csv", "--out", tmp_path / "new" / "costs.csv")
    assert str(tmp_path / "new" / "costs.csv") in result.out
    with (tmp_path / "new" / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["acmix_resnet14", "conv_resnet14"]


def test_conventions_differ(command: Command) -> None:
    published, counted = (
        json.loads(command("cost", "acmix_resnet26", "--json", "--convention", name).out)[0]["macs"]
        for name in ("published", "counted")
    )
    assert published > counted


def test_flops_are_twice_the_multiply_adds(command: Command) -> None:
    out = command("cost", "acmix_resnet26", "--flops").out
    assert "GFLOPs" in out
    assert "4.535" in out
    assert "4.6" in out


def test_a_name_twice_is_one_row(command: Command) -> None:
    assert len(json.loads(command("cost", "conv_resnet14", "conv_resnet14", "--json").out)) == 1


def test_every_operator(command: Command) -> None:
    out = command("cost", "acmix_resnet14", "--operators").out
    assert "layer4.0.conv2" in out
    assert "1x512x14x14" in out


def test_a_figure(command: Command, tmp_path: Path) -> None:
    result = command("cost", "conv_resnet14", "acmix_resnet26", "--plot", tmp_path / "costs.svg")
    assert f"figure: {tmp_path / 'costs.svg'}" in result.out
    svg = (tmp_path / "costs.svg").read_text()
    assert "<svg" in svg
    assert "acmix_resnet26" in svg


def test_json_stays_json_beside_a_figure(command: Command, tmp_path: Path) -> None:
    assert json.loads(command("cost", "conv_resnet14", "--json", "--plot", tmp_path / "costs.svg").out)
    assert (tmp_path / "costs.svg").exists()


def test_a_network_made_for_one_size_is_made_for_the_asked_one(command: Command) -> None:
    result = command("cost", "vit_tiny_patch16_224", "--size", 96, 160)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acmix_resnte50"], "no model 'acmix_resnte50': did you mean acmix_resnet50"),
        (["qqqqqq"], "no model 'qqqqqq': 'convattn list --all' names them all"),
        (["conv_resnet14", "--convention", "honest"], "--convention must be published or counted, got 'honest'"),
        (["conv_resnet14", "--size", "0", "9"], "--size must be a height and a width of at least 1, got 0 9"),
        (["conv_resnet14", "--csv", "--json"], "give one of --csv, --json, --markdown, got --csv and --json"),
        (["conv_resnet14", "--out", "x"], "--out needs a form to write"),
        (["conv_resnet14", "--plot", "x.png"], "--plot writes an .svg file, got 'x.png'"),
        (["crossvit_9_240", "--size", "64", "64"], "crossvit_9_240 at 64x64: "),
    ],
)
def test_errors(command: Command, arguments: list[str], message: str) -> None:
    result = command("cost", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_file_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = command("cost", "conv_resnet14", "--json", "--out", tmp_path / "file" / "x.json")
    assert result.code == 2
    assert "cannot write" in result.err
