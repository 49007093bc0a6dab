"""``convattn convert``: what it would do, the weights that it writes, and the commands that take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open

from convattn.convert import Budget, budget
from convattn.layers import XVolution
from convattn.tasks.converting import convert_run
from convattn.tasks.inference import load_model
from convattn.tasks.recipes import checked_convert
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_the_report_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    done = command("convert", "test_resnet", "--to", "acmix", "--where", 4, "--dry-run", "num_heads=2")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["layer", "from", "to", "parameters", "->", "MMACs", "->", "error"]
    assert lines[1].startswith("layer4.0.conv1")
    assert "ACmix, 2 heads" in lines[1]
    assert "replaced 2 convolutions, left 0" in lines
    assert lines[-1] == "the weights are random ones: errors are smaller with trained ones"
    assert list(tmp_path.iterdir()) == []


def test_a_run_becomes_weights_that_answer_the_same(
    command: Command, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.safetensors"
    done = command("convert", trained, "--to", "xvolution", "--where", "layer4", "--where", 3, "--out", out)
    assert done.code == 0
    assert done.out.splitlines()[-3:] == [
        "test_resnet computes what it did",
        f"weights  {out}",
        f"next     convattn train --data FOLDER weights={out}",
    ]
    before, after = load_model(trained), load_model(out)
    assert after.name == "test_resnet converted to xvolution"
    assert sum(isinstance(module, XVolution) for module in after.model.modules()) == 3
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(after.model(x), before.model(x))
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["convert"]) == {
            "to": "xvolution",
            "where": ["layer4", 3],
            "operator_args": {},
        }
    scores = [json.loads(command("val", "--run", run, "--data", photos, "--json").out) for run in (trained, out)]
    assert scores[0]["top1"] == scores[1]["top1"]
    assert command("predict", "--run", out, photos / "red" / "00.png").code == 0
    again = command("convert", out, "--to", "acmix")
    assert (again.code, again.err) == (2, f"convattn: {out}: it is converted to xvolution already\n")


def test_by_default_the_weights_lie_in_the_run_whose_images_val_then_finds(command: Command, trained: Path) -> None:
    file = trained.resolve() / "weights-acmix.safetensors"
    try:
        done = command("convert", trained.resolve(), "--to", "acmix", "--where", "4", "grouping=similar")
        assert f"weights  {file}" in done.out
        assert "the operators have to be trained" in done.out
        assert command("val", "--run", file).code == 0
    finally:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("convert", [(), ("convert.to=xvolution", "convert.where=4")])
@pytest.mark.parametrize("classes", [3, 2])
def test_training_starts_from_weights(
    convert: tuple[str, ...], classes: int, command: Command, trained: Path, photos: Path, tmp_path: Path
) -> None:
    """With a learning rate of next to nothing, what is trained is what was loaded."""
    for name in ("blue", "green", "red")[:classes]:
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(photos / name)
    tiny = ["epochs=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0", "schedule.warmup=0", "ema.decay=null"]
    tiny += ["batch_size=64", "data.workers=0", "trainer.accelerator=cpu", "mix.prob=0", "augment.random_erasing=0"]
    words = ["train", "--data", tmp_path / "other", "--recipe", "folder", f"weights={trained}", *convert, *tiny]
    done = command(*words)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "latest"
    before, after = load_model(trained), load_model(run)
    assert after.recipe.model == "test_resnet"
    assert (after.recipe.convert.to == "xvolution") == bool(convert)
    assert after.input_size == before.input_size
    theirs = {name.replace(".convolution.", "."): value for name, value in after.model.state_dict().items()}
    for name, value in before.model.state_dict().items():
        if name.startswith("fc") and classes != 3:
            assert theirs[name].shape != value.shape
        elif not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=0)
    config = (run / "config.yaml").read_text()
    assert f"weights: {trained.absolute()}" in config
    assert command("train", "--resume", run).code == 0


def wrong(words: list[Any], message: str) -> Any:
    return pytest.param(words, message, id=" ".join(map(str, words)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        wrong(
            ["nowhere", "--to", "acmix"], "nowhere: no such run or weights; train a model first with: convattn train"
        ),
        wrong(
            ["resnet18", "--to", "acmix"],
            "the weights of resnet18 (timm/resnet18.a1_in1k) are not in this machine's cache, and HF_HUB_OFFLINE is"
            " set; to convert the network before it is trained on your images: convattn train --model resnet18"
            " convert.to=acmix; to see what would be converted: --dry-run",
        ),
        wrong(
            ["RUN", "--to", "acmix", "heads=2"],
            "command line: convert.operator_args: to='acmix' has no option heads; it has num_heads, grouping,"
            " attention_kernel_size, position",
        ),
        wrong(
            ["RUN", "--to", "acmix", "--where", "layer5"],
            "convert: test_resnet to acmix: where='layer5' means no convolution larger than 1x1 of ResNet; near it:"
            " layer4, layer3, layer2",
        ),
    ],
)
def test_what_a_person_can_mend_is_one_line(words: list[Any], message: str, command: Command, trained: Path) -> None:
    done = command("convert", *(trained if word == "RUN" else word for word in words))
    assert (done.code, done.err) == (2, f"convattn: {message}\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["model=resnet18"],
            "is of model test_resnet, the recipe has resnet18: leave model out, since the weights bring",
        ),
        (["model_args.stem_width=8"], "is of model_args {}, the recipe has {'stem_width': 8}: leave model_args out"),
    ],
)
def test_weights_of_another_network_are_refused(
    settings: list[str], message: str, command: Command, trained: Path, photos: Path
) -> None:
    done = command("train", "--data", photos, "--recipe", "folder", f"weights={trained}", *settings)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_recipe_file_that_names_weights_needs_trust(
    command: Command, trained: Path, photos: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: folder\nmodel: test_resnet\nweights: {trained}\n")
    done = command("train", "--data", photos, "--recipe", mine)
    assert (done.code, "weights:" in done.err, "--trust" in done.err) == (2, True, True)


def test_a_budget_says_which_layers_fit(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LAYER_SECONDS", 0.02)
    monkeypatch.setattr(budget, "NETWORK_SECONDS", 0.05)
    done = command("convert", "test_resnet", "--to", "xvolution", "--dry-run", "--budget", "100000%")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split()[-2:] == ["ms", "->"]
    assert "times that of the network as it came" in done.out


def test_the_layers_of_a_budget_are_what_the_weights_say(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says when they are loaded."""
    monkeypatch.setattr(budget, "LAYER_SECONDS", 0.02)
    monkeypatch.setattr(budget, "NETWORK_SECONDS", 0.05)
    wanted = checked_convert("xvolution", [3, 4], {})
    made = convert_run(str(trained), wanted, budget=Budget(1000.0))
    names = tuple(name for name, module in made.model.model.named_modules() if isinstance(module, XVolution))
    assert made.model.recipe.convert.where == names
    assert len(names) > 1
    made.write(trained.with_name("budget.safetensors"))
    again = load_model(trained.with_name("budget.safetensors"))
    assert [name for name, module in again.model.named_modules() if isinstance(module, XVolution)] == list(names)


@pytest.mark.parametrize("text", ["10", "1.1x", "-5%", "ten%"])
def test_a_budget_that_is_no_share_is_answered(command: Command, text: str) -> None:
    done = command("convert", "test_resnet", "--to", "xvolution", f"--budget={text}", "--dry-run")
    assert done.code == 2
    assert f"takes how much longer the network may take, such as 10%, got {text!r}" in " ".join(done.err.split())
