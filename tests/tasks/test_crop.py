"""The evaluation crop: the network's own, written into runs, weights and exports; 0.875 where 0.1 wrote none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from convattn.data.transforms import eval_transform
from convattn.tasks.checkpoints import describe, write_weights
from convattn.tasks.config import DataConfig, Recipe
from convattn.tasks.exporting import network_by_name
from convattn.tasks.inference import load_model
from convattn.tasks.recipes import load_recipe, read_recipe
from convattn.tasks.run_folder import RunFolder, write_start
from convattn.tasks.starting import settings_of
from convattn.tasks.task import task_of
from convattn.tasks.training import prepare, prepare_resume

MODEL = "test_resnet"
OWN = timm.get_pretrained_cfg(MODEL).crop_pct
CLASSES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe_for(folder: Path, **settings: object) -> Recipe:
    given = {"model": MODEL, "data.folder": str(folder), "data.image_size": 96, "data.workers": 0}
    return load_recipe("folder-small", given | settings)


@pytest.fixture
def photo() -> Image.Image:
    image = Image.new("RGB", (200, 200), (0, 0, 0))
    image.paste((255, 255, 255), (8, 8, 192, 192))  # a frame that only some crops show
    return image


def test_the_network_says_its_crop(photos: Path, tmp_path: Path) -> None:
    assert OWN not in (0.875, 1.0)
    assert prepare(recipe_for(photos), tmp_path).recipe.data.crop_pct == OWN
    assert prepare(recipe_for(photos, **{"data.crop_pct": 0.8}), tmp_path).recipe.data.crop_pct == 0.8
    assert prepare(recipe_for(photos, **{"data.image_size": 32}), tmp_path).recipe.data.crop_pct == 1.0


def test_validation_prediction_and_weights_have_the_runs_crop(photos: Path, tmp_path: Path, photo: Image.Image) -> None:
    job = prepare(recipe_for(photos), tmp_path)
    write_weights(tmp_path / "a.safetensors", job.model.state_dict(), describe(job.recipe, CLASSES))
    loaded = load_model(tmp_path / "a.safetensors")
    statistics = (job.recipe.data.mean, job.recipe.data.std, job.recipe.data.interpolation)
    wanted = eval_transform((3, 96, 96), *statistics, OWN)(photo)
    assert not torch.equal(wanted, eval_transform((3, 96, 96), *statistics)(photo))
    for transform in (loaded.transform, task_of(job.recipe).transform(job.recipe)):
        assert torch.equal(transform(photo), wanted)
    assert json.loads(loaded.description["crop_pct"]) == OWN, "which an export copies"
    assert settings_of(str(tmp_path / "a.safetensors"))["data.crop_pct"] == OWN


def test_weights_of_version_0_1_keep_0_875(tmp_path: Path, photo: Image.Image) -> None:
    data = DataConfig(image_size=96, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    description = describe(Recipe(MODEL, data=data), CLASSES)
    assert "crop_pct" not in description
    net = timm.create_model(MODEL, num_classes=len(CLASSES))
    write_weights(tmp_path / "a.safetensors", net.state_dict(), description)
    found = load_model(tmp_path / "a.safetensors").transform(photo)
    assert torch.equal(found, eval_transform((3, 96, 96), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic", 0.875)(photo))
    assert "data.crop_pct" not in settings_of(str(tmp_path / "a.safetensors"))


def test_a_run_of_version_0_1_goes_on_with_0_875(photos: Path, tmp_path: Path) -> None:
    recipe = prepare(recipe_for(photos), tmp_path).recipe
    old = RunFolder(tmp_path / "old")
    old.path.mkdir()
    write_start(old, replace(recipe, data=replace(recipe.data, crop_pct=None)), [f"class{n}" for n in range(4)], [], ())
    text = old.config.read_text()
    old.config.write_text("".join(line for line in text.splitlines(True) if "crop_pct" not in line))
    assert read_recipe(old.config, trust=True).data.crop_pct is None
    assert prepare_resume(old, trust=True).recipe.data.crop_pct == 0.875


def test_an_exported_network_by_name_has_its_own_crop() -> None:
    assert json.loads(network_by_name(MODEL).description["crop_pct"]) == OWN
