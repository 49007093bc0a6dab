"""The commands of the pages on converting, pretrained starts and fine-tuning, run one after the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file

from convattn.tasks.recipes import read_recipe
from tests.cli.conftest import Command
from tests.cli.test_starts import put
from tests.tasks.dense_runs import write_coco, write_pairs
from tests.test_docs import ROOT, blocks, commands

SMALL = ["epochs=1", "batch_size=4", "data.workers=0", "trainer.accelerator=cpu", "ema.decay=null", "norm_images=8"]
BOXES = "network.args={min_size: 64, max_size: 96, channels: 16, fc_channels: 16, proposals: [40, 20]}"
TINY = {
    "classification": SMALL,  # no size of the images: what has no --model gets the recipe for a CPU
    "detection": [BOXES, *SMALL],
    "segmentation": ["network.args={pyramid_channels: 16, channels: 16}", "segmentation_augment.crop=[64, 64]", *SMALL],
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, photos: Path, trained: Path, tmp_path: Path) -> Path:
    """A folder with all that the commands name: photos, annotations, weights in a file and in the cache, a run."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18", "resnet50"):
        put(tmp_path / "cache", f"timm/{name}.a1_in1k", timm.create_model(name))
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    for color in ("blue", "green", "red"):
        (tmp_path / "photos" / color).mkdir(parents=True)
        for index in range(6):
            shutil.copy(photos / color / f"{index:02}.png", tmp_path / "photos" / color)
    write_coco(tmp_path / "coco")
    write_pairs(tmp_path / "pairs")
    (tmp_path / "mine").mkdir()
    shutil.copytree(trained.resolve(), tmp_path / "mine" / "run")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["convert.md", "pretrained.md", "finetune.md"])
def test_the_commands_of_a_page_run(page: str, here: Path, command: Command) -> None:
    ours = [words for _, words in commands((ROOT / "docs" / page).read_text()) if words[0] == "convattn"]
    assert ours
    for _, verb, *words in ours:
        task = words[words.index("--task") + 1] if "--task" in words else "classification"
        words = [word.replace("runs/latest", "mine/run") for word in words]
        if "--budget" in words:  # the run's network is so small that any operator costs it more than a tenth
            words[words.index("--budget") + 1] = "900%"
        done = command(verb, *words, *(TINY[task] if verb == "train" else []))
        assert done.code == 0, (verb, words, done.err)


def test_the_recipe_of_the_page_is_one(tmp_path: Path) -> None:
    ((_, text),) = blocks((ROOT / "docs" / "finetune.md").read_text(), "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "mine.yaml", trust=True)
    assert yaml.safe_load(text)["convert"]["where"] == list(recipe.convert.where)
    assert (recipe.pretrained, recipe.freeze, recipe.optimizer.layer_decay) == (True, 1, 0.8)
