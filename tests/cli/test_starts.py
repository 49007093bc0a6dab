"""What ``convattn train --data photos/`` starts from: pretrained weights where they can be had, else it says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from convattn.layers import ACmix, XVolution
from convattn.tasks.inference import load_model
from tests.cli.conftest import Command

TINY = ["epochs=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0", "schedule.warmup=0", "data.image_size=32"]
TINY += ["batch_size=32", "data.workers=0", "trainer.accelerator=cpu", "ema.decay=null", "norm_images=0"]
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache in place of this machine's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def put(cache: Path, repository: str, model: torch.nn.Module) -> None:
    """Put weights into a cache of the hub, as a download does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")


def test_own_photos_start_from_pretrained_weights_of_the_cache(command: Command, photos: Path, cache: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet18")
    put(cache, "timm/resnet18.a1_in1k", source)
    # data.image_size says a size, so the recipe is not the small one: its model is given
    done = command("train", "--data", photos, "--model", "xvolution_resnet18", *TINY)
    assert done.code == 0, done.err
    assert "recipe finetune: 1 epochs" in done.out
    assert "starting from the pretrained weights timm/resnet18.a1_in1k" in done.out
    net = load_model(cache.parent / "runs" / "latest").model
    assert isinstance(net.layer4[0].conv2, XVolution)
    torch.testing.assert_close(net.layer4[0].conv2.convolution.weight, source.layer4[0].conv2.weight)
    torch.testing.assert_close(net.layer2[0].conv1.weight, source.layer2[0].conv1.weight)


def test_a_network_of_timms_starts_from_them_converted(command: Command, photos: Path, cache: Path) -> None:
    """By ``convattn train --data photos/ --model resnet18 convert.to=acmix``: the batch norms are estimated anew."""
    put(cache, "timm/resnet18.a1_in1k", timm.create_model("resnet18"))
    words = [word for word in TINY if not word.startswith("norm_images")]
    done = command(
        *("train", "--data", photos, "--model", "resnet18", *words, "convert.to=acmix", "convert.where=4", "freeze=1")
    )
    assert done.code == 0, done.err
    assert "resnet18 converted to acmix" in done.out
    net = load_model(cache.parent / "runs" / "latest").model
    assert [float(m.mix.beta.detach()) for m in net.modules() if isinstance(m, ACmix)] == [1.0] * 4
    assert net.bn1.running_var.eq(1).all(), "what is frozen keeps its statistics"
    assert net.layer4[0].bn1.running_var.ne(1).all()


@pytest.mark.parametrize(
    ("words", "model", "where"),
    [
        ([], "xvolution_resnet18", "timm/resnet18.a1_in1k"),
        (["--model", "acmix_resnet18"], "acmix_resnet18", "timm/resnet18.a1_in1k"),
        (["--model", "pvt_v1_tiny"], "pvt_v1_tiny", "https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth"),
    ],
)
def test_without_weights_a_line_says_that_it_starts_from_random_ones(
    words: list[str], model: str, where: str, command: Command, photos: Path, cache: Path
) -> None:
    tiny = [word for word in TINY if not word.startswith("data.image_size") or words]
    done = command("train", "--data", photos, *words, *tiny)
    assert done.code == 0, done.err
    line = f"starting from random weights: the weights of {model} ({where}) are not in this machine's cache"
    assert f"{line}, and HF_HUB_OFFLINE is set" in done.out.splitlines()
    assert f"recipe folder{'' if words else '-small'}: 1 epochs" in done.out


def test_a_network_without_any_says_so(command: Command, photos: Path, cache: Path) -> None:
    done = command("train", "--data", photos, "--model", "conv_resnet14", "pretrained=false", *TINY)
    assert done.code == 0, done.err
    assert "weights" not in "".join(done.out.splitlines()[:4])
    done = command("train", "--data", photos, "--model", "conv_resnet14", *TINY)
    assert "starting from random weights: conv_resnet14 has no pretrained weights" in done.out.splitlines()


def test_a_hub_that_does_not_answer_costs_seconds(
    command: Command, photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    began = time.monotonic()
    done = command("train", "--data", photos, "epochs=nonsense")
    assert done.code == 2
    done = command("convert", "resnet18", "--to", "acmix")
    assert time.monotonic() - began < 20
    assert done.err.startswith(
        "convattn: the weights of resnet18 (timm/resnet18.a1_in1k) are not in this machine's cache, and the network"
        " does not answer; to convert"
    )


def test_the_embedded_digits_ask_nobody(command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("convattn.tasks.hub.urlopen", ask)
    monkeypatch.setattr("convattn.tasks.hub.why_no_weights", ask)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    done = command("train", "--model", "test_resnet", "epochs=1", "trainer.accelerator=cpu")
    assert done.code == 0, done.err
