"""``convert:`` in recipes: every task builds the converted network, and whatever loads it afterwards knows of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY, Start
from dense_runs import TASKS, recipe, write_coco
from safetensors import safe_open
from test_resume import assert_same_run, changed, finish, run_folder, wait_for

from convattn.errors import UserError
from convattn.layers import ACmix, XVolution
from convattn.tasks.building import build_model
from convattn.tasks.checkpoints import check_same_model, describe
from convattn.tasks.config import ConvertConfig, Recipe
from convattn.tasks.inference import load_model
from convattn.tasks.recipes import load_recipe, parse_overrides, read_recipe, to_mapping
from convattn.tasks.task import build_network, task_of
from convattn.tasks.training import prepare

XVOLUTION = ["convert.to=xvolution", "convert.where=4"]
FINETUNED = ["convert.to=acmix", "convert.where=4", "freeze=1", "optimizer.layer_decay=0.8", "norm_images=40"]


def operators(model: torch.nn.Module) -> list[str]:
    """The names of X-volutions and ACmix in a network, as its backbone has them."""
    kinds = (XVolution, ACmix)
    return [name.partition("layer4")[2] for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("task", TASKS)
def test_the_backbone_of_every_task_is_converted(task: str) -> None:
    settings = ["model=test_resnet", "model_args={}", "convert.to=xvolution", "convert.where=4"]
    wanted = recipe(task, *settings)
    plain = recipe(task, *settings[:2])
    torch.manual_seed(0)
    net = build_network(wanted, 3).eval()
    assert operators(net) == [".0.conv1", ".0.conv2"]
    torch.manual_seed(0)
    before = build_network(plain, 3).eval()
    backbones = []
    for model in (net, before):
        task_of(wanted).with_backbone(model, lambda backbone: backbones.append(backbone) or backbone)
    batch = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(*(backbone(batch) for backbone in backbones), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_where_takes_the_names_and_stages_of_timms_network_whatever_stands_on_it() -> None:
    for where in ("stages.3", 4, ("stages.3.blocks.*",)):
        wanted = Recipe("test_convnext", task="segmentation", convert=ConvertConfig("xvolution", where=where))
        names = [name for name, module in build_network(wanted, 3).named_modules() if isinstance(module, XVolution)]
        assert names, where
        assert all("stages_3" in name for name in names), where


def test_frozen_stages_stay_frozen_once_they_are_converted() -> None:
    settings = ["model=test_resnet", "model_args={}", "convert.to=xvolution", "convert.where=[1, 4]"]
    net = build_network(recipe("detection", *settings, "network.args.frozen_stages=1"), 3).train()
    backbone = net.backbone.features.net
    assert not any(parameter.requires_grad for parameter in backbone.layer1.parameters())
    assert not any(module.training for module in backbone.layer1.modules())
    assert all(parameter.requires_grad for parameter in backbone.layer4.parameters())
    assert all(module.training for module in backbone.layer4.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("convert.to=xvoluton", "command line: convert.to must be one of acmix, xvolution or null, got 'xvoluton'"),
        ("convert.wher=4", "command line: unknown key 'convert.wher': did you mean where? keys: operator_args, to, wh"),
        ("convert=acmix", "command line: convert is a section; its keys: convert.to, convert.where, convert.operator_"),
        ("convert.where=4", "recipe digits: convert.where must be left out where convert.to is not set, got 4"),
        ("convert.to=acmix convert.where=1.5", "command line: convert.where must be text or a whole number or a list"),
        (
            "convert.to=acmix convert.operator_args.heads=2",
            "recipe digits: convert.operator_args: to='acmix' has no option heads; it has num_heads",
        ),
        (
            "convert.to=acmix convert.operator_args.num_heads=0",
            "recipe digits: convert.operator_args: num_heads must be 'fit' or at least 1, got 0",
        ),
    ],
)
def test_wrong_settings_are_one_line_that_names_the_key(settings: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("digits", parse_overrides(settings.split()))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("layer5", "convert: test_resnet to xvolution: where='layer5' means no convolution larger than 1x1 of ResNet;"),
        (7, "convert: test_resnet to xvolution: the network has the stages [1, 2, 3, 4], got 7"),
    ],
)
def test_a_place_that_the_network_lacks_is_one_line(where: str | int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_network(Recipe("test_resnet", convert=ConvertConfig("xvolution", where=where)), 3)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_network_where_nothing_can_be_replaced_says_why_in_one_line() -> None:
    with pytest.raises(UserError, match=r"test_convnext to acmix: nothing can be replaced: .*depthwise") as caught:
        build_network(Recipe("test_convnext", convert=ConvertConfig("acmix", where=None)), 3)
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_is_converted_by_hand(photos: Path, tmp_path: Path) -> None:
    own = build_model(Recipe("test_resnet"), 10)
    for setting in ({"convert.to": "xvolution"}, {"freeze": 1}):
        wanted = load_recipe("digits", {"model": "test_resnet", "model_args": {}, **setting})
        with pytest.raises(UserError, match="convert, weights, backbone_weights and freeze are for a network by name"):
            prepare(wanted, tmp_path, model=own)


def test_recipes_survive_their_yaml(tmp_path: Path) -> None:
    wanted = load_recipe("digits", {"convert.to": "acmix", "convert.where": ["layer4", 3]})
    assert wanted.convert == ConvertConfig("acmix", where=("layer4", 3))
    (tmp_path / "mine.yaml").write_text(json.dumps(to_mapping(wanted)))
    assert read_recipe(tmp_path / "mine.yaml") == wanted


def test_weights_of_networks_that_are_not_converted_say_what_they_said_before() -> None:
    plain = load_recipe("digits", {"model": "test_resnet"})
    assert "convert" not in describe(plain, ["a", "b"])
    changed_recipe = load_recipe("digits", {"model": "test_resnet", "convert.to": "xvolution"})
    stored = {"convattn": describe(plain, ["a", "b"])}
    check_same_model(stored, plain, ["a", "b"], Path("last.ckpt"))
    with pytest.raises(UserError, match=r"last\.ckpt was written for convert None, this run has .*xvolution"):
        check_same_model(stored, changed_recipe, ["a", "b"], Path("last.ckpt"))


@pytest.mark.parametrize("more", [XVOLUTION, pytest.param(FINETUNED, marks=pytest.mark.slow)], ids=["exact", "tuned"])
def test_a_classifier_has_its_whole_life(more: list[str], start: Start, photos: Path, tmp_path: Path) -> None:
    """By ``convattn train --data photos/ convert.to=xvolution``; to ACmix, with all that fine-tuning has."""
    image = next((photos / "class0").iterdir())
    settings = [*TINY[1:], "--recipe=folder", f"--data={photos}", *more]
    settings += ["epochs=2", "data.image_size=32", "data.workers=0"]
    check_life(start, tmp_path, settings, image)
    with safe_open(tmp_path / "killed" / "latest" / "weights.safetensors", "pt") as file:
        kind = "xvolution" if more is XVOLUTION else "acmix"
        assert json.loads(file.metadata()["convert"]) == {"to": kind, "where": 4, "operator_args": {}}


@pytest.mark.slow
def test_a_detector_has_its_whole_life(start: Start, tmp_path: Path) -> None:
    """By ``convattn train --task detection --data coco/ convert.to=xvolution model=resnet18``."""
    coco = write_coco(tmp_path / "coco")
    args = "{min_size: 64, max_size: 96, channels: 16, fc_channels: 16, proposals: [40, 20], regions_per_image: 16}"
    settings = ["--task=detection", f"--data={coco}", "convert.to=xvolution", "model=resnet18", "epochs=2"]
    settings += [f"network.args={args}", "batch_size=2", "data.workers=0", "ema.decay=null"]
    settings += ["checkpoint={every_seconds: null, every_steps: 1}", "trainer.accelerator=cpu"]
    check_life(start, tmp_path, settings, coco / "images" / "0.png")


def check_life(start: Start, root: Path, settings: list[str], image: Path) -> None:
    """A run that is killed and resumed ends like a whole one, and every command takes what it leaves."""
    finish(start, ["train", "--out", str(root / "whole"), *settings])
    process = start(["train", "--out", str(root / "killed"), *settings])
    wait_for(lambda: (root / "killed" / "latest" / "config.yaml").is_file())
    wait_for(changed(run_folder(root / "killed") / "checkpoints" / "last.ckpt"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    finish(start, ["train", "--resume", str(root / "killed" / "latest")])
    whole, killed = run_folder(root / "whole"), run_folder(root / "killed")
    if (whole / "predictions.csv").is_file():
        assert_same_run(killed, whole)
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    for words in (
        ["val", "--run", str(killed), "--device", "cpu"],
        ["predict", "--run", str(killed), str(image), "--device", "cpu"],
        ["export", str(killed), "--out", str(root / "model.onnx")],
        ["predict", "--run", str(root / "model.onnx"), str(image)],
    ):
        process = start(words)
        process.join(600)
        assert process.exitcode == 0, words
    assert operators(load_model(killed).model)
