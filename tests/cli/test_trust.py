"""A file names a network that lies elsewhere: only with the user's word; what the user types is their word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from convattn.cli import main  # noqa: F401  registers the models
from convattn.errors import UserError
from convattn.tasks.inference import load_model
from convattn.tasks.recipes import load_recipe, read_recipe
from tests.cli.conftest import Command

TINY = ["data.image_size=32", "batch_size=512", "--epochs", "1", "--accelerator", "cpu"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network in a folder, as timm's ``local-dir:`` reads it."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "network"
    folder.mkdir()
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), folder / "pytorch_model.bin")
    return f"local-dir:{folder}"


def test_typed_it_is_the_users_word_and_afterwards_a_files(elsewhere: str, command: Command, tmp_path: Path) -> None:
    trained = command("train", *TINY, "--model", elsewhere)
    assert trained.code == 0, trained.err
    run = (tmp_path / "runs" / "latest").resolve()
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(image)
    for words in (["predict", image, "--run", run], ["val", "--run", run]):
        refused = command(*words)
        assert refused.code == 2
        assert f"weights.safetensors: model: '{elsewhere}' would open other files or the network" in refused.err
        assert "--trust" in refused.err
        assert command(*words, "--trust").code == 0
    (run / "summary.json").unlink()
    refused = command("train", "--resume", run)
    assert refused.code == 2
    assert f"config.yaml: model: '{elsewhere}' would open other files or the network" in refused.err
    assert command("train", "--resume", run, "--trust").code == 0


@pytest.mark.slow
def test_a_recipes_file_needs_it(elsewhere: str, command: Command, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"model: '{elsewhere}'\ndata: {{embedded: digits}}\n")
    refused = command("train", *TINY, "--recipe", mine)
    assert refused.code == 2
    assert f"mine.yaml: model: '{elsewhere}' would open" in refused.err
    assert not (tmp_path / "runs").exists()
    assert command("train", *TINY, "--recipe", mine, "--trust").code == 0


def test_an_override_takes_the_place_of_what_a_file_says(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: hf-hub:a/b\npretrained: true\nmodel_args: {checkpoint_path: /a, pretrained_cfg: {url: a}}")
    own = {"model": "resnet10t", "pretrained": False, "model_args.checkpoint_path": "/mine"}
    with pytest.raises(UserError, match=r"mine.yaml: model: 'hf-hub:a/b'"):
        read_recipe(mine)
    with pytest.raises(UserError, match=r"mine.yaml: pretrained: True"):
        read_recipe(mine, {"model": "resnet10t"})
    with pytest.raises(UserError, match=r"mine.yaml: model_args.checkpoint_path"):
        read_recipe(mine, {"model": "resnet10t", "pretrained": False})
    assert read_recipe(mine, own).model_args["pretrained_cfg"] == {"url": "a"}  # nothing is fetched by it
    with pytest.raises(UserError, match=r"mine.yaml: model_args.pretrained_cfg"):
        read_recipe(mine, {**own, "pretrained": True, "model_args.pretrained_cfg.file": "/mine"})
    said = read_recipe(mine, {"model": "hf-hub:c/d", "pretrained": True, "model_args": {"checkpoint_path": "/mine"}})
    assert (said.model, said.model_args) == ("hf-hub:c/d", {"checkpoint_path": "/mine"})
    assert read_recipe(mine, trust=True).model == "hf-hub:a/b"
    assert load_recipe("digits", {"model": "hf-hub:a/b", "pretrained": True}).pretrained


@pytest.mark.slow
def test_a_resume_from_a_checkpoint_fetches_nothing_again(command: Command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", *TINY, "--model", "test_resnet", "model_args={}").code == 0
    run = (tmp_path / "runs" / "latest").resolve()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("pretrained: false", "pretrained: true"))
    (run / "summary.json").unlink()
    assert command("train", "--resume", run).code == 0
    with pytest.raises(UserError, match="no such run"):
        load_model(tmp_path / "nowhere", trust=True)
