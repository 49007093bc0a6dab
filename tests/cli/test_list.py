"""``convattn list``."""

import json

import timm

from tests.cli.conftest import Command


def test_models_with_their_parameters_and_recipes(command: Command) -> None:
    found = json.loads(command("list", "--json").out)
    models = {model["name"]: model["parameters"] for model in found["models"]}
    assert {"acmix_resnet26", "acmix_resnet38", "acmix_resnet50"} <= set(models)
    assert "resnet50" not in models
    built = timm.create_model("acmix_resnet26")
    assert models["acmix_resnet26"] == sum(parameter.numel() for parameter in built.parameters())
    assert "digits" in found["recipes"]


def test_a_part_of_a_name(command: Command) -> None:
    out = command("list", "acmix").out
    assert "acmix_resnet50" in out
    assert "18.33 M" in out
    assert "sasa_resnet50" not in out
    assert "recipe" not in out


def test_a_pattern_over_all_of_timm(command: Command) -> None:
    found = json.loads(command("list", "--all", "convnext_?iny", "--json").out)
    assert found == {"models": [{"name": "convnext_tiny", "parameters": None}], "recipes": []}


def test_no_match(command: Command) -> None:
    result = command("list", "convnext")
    assert (result.code, result.out) == (2, "")
    assert "no model or recipe matches 'convnext'; look among timm's models too with --all" in result.err
