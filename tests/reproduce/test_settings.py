"""The weights that full-scale rows start from: one folder for one network, made by a command of its own."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from convattn.tasks.recipes import load_recipe
from convattn.tasks.starting import network_options
from reproduce import ENTRIES
from reproduce.dry_run import recipe_of, try_commands
from reproduce.entries import Entry, Part, Row
from reproduce.settings import Setting
from reproduce.tables import backbones, to_markdown

FULL = [(entry, part) for entry in ENTRIES for part in entry.parts if part.scale == "full"]
ROWS = [row for _, part in FULL for row in part.rows if row.setting is not None]
DENSE = [row.setting for row in ROWS if row.setting and row.setting.backbone]
CLASSIFIERS = [row.setting.backbone or row.setting for row in ROWS if row.setting]


def network_of(setting: Setting) -> str:
    """What a classifier is: its recipe, its network and all options of it."""
    recipe = load_recipe(setting.recipe, setting.overrides)
    return json.dumps([setting.recipe, recipe.model, network_options(recipe.model_args)], sort_keys=True)


def test_one_folder_of_weights_is_one_configuration() -> None:
    folders = {setting.weights_folder: network_of(setting) for setting in CLASSIFIERS}
    assert len(folders) > 50
    for setting in CLASSIFIERS:
        assert folders[setting.weights_folder] == network_of(setting), setting.weights_folder
    assert len({*folders.values()}) == len(folders), "one configuration has one folder"


def test_the_folder_goes_by_the_options_not_by_how_they_are_written() -> None:
    model = {"model": "xvolution_resnet50"}
    written = [
        {"model_args.operator_args": {"kernel_size": 5}},
        {"model_args.operator_args.kernel_size": 5},
        {"model_args.operator_args.kernel_size": 5, "model_args.stride_place": "projection"},
    ]
    found = {Setting("imagenet-xvolution", model | options).weights_folder for options in written}
    assert found == {"weights/imagenet-xvolution/xvolution_resnet50-kernel_size=5"}
    assert Setting("imagenet-xvolution", model | {"epochs": 3}).weights_folder.endswith("resnet50-epochs=3")


@pytest.mark.parametrize("setting", DENSE, ids=lambda setting: setting.command())
def test_a_backbone_is_trained_as_the_network_that_starts_from_it(setting: Setting) -> None:
    backbone = setting.backbone
    assert backbone is not None
    theirs, ours = recipe_of(backbone.command()), recipe_of(setting.command())
    assert theirs.task == "classification"
    assert theirs.model == ours.model
    assert network_options(theirs.model_args) == network_options(ours.model_args)
    words = backbone.command().split()
    assert ours.backbone_weights == f"{words[words.index('--out') + 1]}/latest"


@pytest.mark.parametrize("row", ["conv_resnet50", "sasa_resnet50", "acmix_resnet50"])
def test_the_stride_is_in_the_same_place_on_imagenet(row: str) -> None:
    detector = Setting("coco-retinanet-resnet", {"model": row})
    assert detector.backbone is not None
    places = []
    for command in (detector.command(), detector.backbone.command()):
        with torch.device("meta"):
            net = timm.create_model(row, **network_options(recipe_of(command).model_args))
        places.append(net.layer2[0].conv1.stride)
    assert places[0] == places[1] == ((1, 1) if row == "conv_resnet50" else (2, 2))


def test_every_backbone_has_a_command_in_its_tables() -> None:
    printed = backbones(part for _, part in FULL)
    assert {*printed} == {setting.backbone.command() for setting in DENSE if setting.backbone}
    assert len(printed) >= 32
    part = next(part for entry, part in FULL if entry.id == "xvolution-table2")
    text = to_markdown(Entry("xvolution", "table 2", "", (part,)), {"full": ()})
    for words, rows in backbones([part]).items():
        assert f"{words}  # the backbone of {', '.join(rows)}" in text


KINDS = {
    "detector": Setting("coco-faster_rcnn-xvolution-1x", {"model": "xvolution_resnet50"}),
    "instances": Setting("coco-mask_rcnn-swin", {"model": "acmix_swin_tiny"}),
    "segmenter": Setting("ade20k-semantic_fpn-pvt", {"model": "acmix_pvt_tiny"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_scale_command_is_tried_with_its_backbones(kind: str) -> None:
    """The real networks: the classifier's step writes the weights that the other one loads."""
    part = Part("full", (), (Row(kind, setting=KINDS[kind]),), "")
    first, second = try_commands([("table", part)])
    assert (first.fault, second.fault) == ("", "")
    assert "--recipe imagenet-" in first.command
    assert second.rows == (f"table, {kind}",)
    assert second.parameters > first.parameters > 10e6


def test_a_command_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(
        "full", (), (Row("wide", setting=Setting("imagenet-san", {"model": "san10", "model_args.widths": [8]})),), ""
    )
    (tried,) = try_commands([("table", part)])
    assert tried.fault.startswith("UserError: model san10 with model_args {'widths': [8]}")
