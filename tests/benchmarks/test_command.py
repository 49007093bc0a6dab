"""``python -m benchmarks``."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.command import VERBS, app
from benchmarks.memory import KEPT, LAYERS
from benchmarks.record import PEAK, TIME, read_records
from convattn.cli.list import count_parameters
from tests.cli.conftest import Command

QUICK = ("--rounds", 2, "--threads", 1, "--allow-busy")


def test_op(command: Command, tmp_path: Path) -> None:
    asked = ("pssa-8@8", "--subjects", "eager,unfold", "--isa", "avx2", *QUICK, "--out", tmp_path)
    result = command("op", *asked)
    assert result.code == 0, result.err
    for word in (
        "pssa-8@8",
        "Conv2d 3x3",
        "eager",
        "unfold",
        " floors",
        "record:",
        "next: python -m benchmarks model acmix_resnet50",
    ):
        assert word in result.out
    (record,) = read_records(tmp_path)
    assert list(record.results) == ["Conv2d 3x3", "eager", "unfold"]
    assert all(len(measured[TIME].values) == 2 for measured in record.results.values())
    assert (record.base, record.case["ours"].split(",")[-1]) == ("Conv2d 3x3", "eager")
    assert (record.environment.threads, record.environment.isa) == (1, "avx2")
    assert record.environment.kernels != "avx512"
    assert record.floor is not None
    assert record.floor.seconds > 0


def test_op_lists_its_cases(command: Command) -> None:
    result = command("op", "--list")
    assert {line.split()[0] for line in result.out.splitlines()} >= {"acmix-64@56", "acmix-512@14-s2", "san-64@56"}


SMALL = ("acmix_resnet14", "--against", "conv_resnet14", "--size", 32, "--batch", 2, *QUICK)


def test_model_as_json(command: Command, tmp_path: Path) -> None:
    result = command("model", *SMALL, "--processes", 0, "--json", "--out", tmp_path)
    assert result.code == 0, result.err
    (plain,) = json.loads(result.out)
    (record,) = read_records(tmp_path)
    assert plain["taken"] == record.taken
    assert {name: set(measured) for name, measured in record.results.items()} == {
        "conv_resnet14": {TIME},
        "acmix_resnet14": {TIME},
    }
    assert {check.state for check in record.checks.values()} == {"right"}


@pytest.mark.slow
def test_train(command: Command, tmp_path: Path) -> None:
    result = command("model", *SMALL, "--mode", "train", "--processes", 1, "--out", tmp_path)
    assert result.code == 0, result.err
    assert "training step" in result.out
    (record,) = read_records(tmp_path)
    for name, measured in record.results.items():
        gradients = 4 * count_parameters(name)
        assert measured[PEAK].median > gradients, "a step makes all gradients anew"
        assert len(measured[TIME].values) == 2


MAP = 2 * 16 * 24 * 24 * 4  # bytes of one map of the case below


@pytest.mark.slow
def test_memory(command: Command, tmp_path: Path) -> None:
    sizes = ("--batch", 2, "--channels", 16, "--size", 24, "--processes", 1, "--threads", 1)
    result = command("memory", *sizes, "--out", tmp_path)
    assert result.code == 0, result.err
    for word in ("Conv2d 3x3", "ACmix by unfold", "kept for backward MiB"):
        assert word in result.out
    (record,) = read_records(tmp_path)
    kept = {layer: measured[KEPT].median for layer, measured in record.results.items()}
    assert set(kept) == set(LAYERS)
    assert kept["Conv2d 3x3"] == MAP
    assert kept["ACmix by unfold"] > 49 * MAP, "unfolding keeps a copy for each of the 49 offsets"
    assert kept["ACmix"] < 49 * MAP / 2, "ACmix keeps no copy for every offset"
    peak = {layer: measured[PEAK].median for layer, measured in record.results.items()}
    assert peak["Conv2d 3x3"] < 49 * MAP < 2 * 49 * MAP < peak["ACmix by unfold"]


def test_docs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    folders = ("--records", tmp_path / "results", "--out", tmp_path / "docs")
    refused = command("docs", "--check", *folders)
    assert refused.code == 2
    assert "out of date" in refused.err
    assert command("docs", *folders).out.split() == [str(tmp_path / "docs" / "benchmarks.md")]
    assert command("docs", "--check", *folders).code == 0
    (tmp_path / "results" / "bad.json").write_text('{"schema": 1, "kind": "op"}')
    refused = command("docs", *folders)
    assert refused.code == 2
    assert "bad.json is not a benchmark record: taken is missing" in refused.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("op nothing-64@56", "no case 'nothing-64@56'"),
        ("op --mode backward", "--mode must be forward or train, got 'backward'"),
        ("op --batch 1,x", "--batch must be a number of images, or several as in 1,8, got '1,x'"),
        ("op --threads 4096", "--threads must be at most"),
        ("op --isa mmx", "--isa must be one of default, avx512, avx2, baseline, got 'mmx'"),
        ("op --dtype int8", "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ("op --device mps", "--device must be cpu, cuda or cuda:<number>, got 'mps'"),
        ("op --device cuda:99", "--device cuda:99: torch finds"),
        ("model acmix_resnet5", "no model 'acmix_resnet5'; did you mean"),
        ("memory --channels 6", "--channels must be divisible by 4, got 6"),
        ("docs --records no/such/folder", "no folder no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(command: Command, tmp_path: Path, words: str, why: str) -> None:
    out = [] if words.startswith("docs") else ["--out", tmp_path / "results"]
    result = command(*words.split(), *out)
    assert result.code == 2
    assert why in result.err
    assert not (tmp_path / "results").exists()


def examples() -> list[str]:
    lines = [line.strip() for verb in VERBS for line in (verb.__doc__ or "").split("\n")]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("python -m benchmarks ")]


@pytest.mark.parametrize("example", examples())
def test_examples_in_the_help_parse(example: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(example)[3:], "--help"])
    assert result.exit_code == 0, result.output


def test_every_verb_shows_examples() -> None:
    assert {example.split()[3] for example in examples()} == {verb.__name__.replace("_", "-") for verb in VERBS}


@pytest.mark.slow
def test_data(command: Command, tmp_path: Path) -> None:
    words = ("--images", 120, "--size", 32, "--batch", 8, "--rounds", 2, "--workers", "0,1", "--allow-busy")
    result = command("data", *words, "--out", tmp_path)
    assert result.code == 0, result.err
    assert "next: python -m benchmarks start" in result.out
    records = read_records(tmp_path)
    assert [record.case["workers"] for record in records] == [0, 1]
    for record in records:
        measured = {name: record.results[name][TIME] for name, check in record.checks.items() if check.state == "right"}
        assert list(measured)[:2] == ["class folders", "tar shards"]
        assert all(len(times.values) == 2 and times.range[0] > 0 for times in measured.values())
        assert f"{1 / measured['tar shards'].median:.0f} (" in result.out


@pytest.mark.slow
def test_start(command: Command, tmp_path: Path) -> None:
    result = command("start", "--images", 1000, "--rounds", 1, "--allow-busy", "--threads", 1, "--out", tmp_path)
    assert result.code == 0, result.err
    (record,) = read_records(tmp_path)
    assert list(record.results) == ["200 images in class folders", "class folders", "tar shards", "CSV table"]
    for measured in record.results.values():
        assert 0 < measured[TIME].median < 300
        assert measured["peak memory"].median > 100 * 2**20, "torch alone has more"
