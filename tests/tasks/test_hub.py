"""Pretrained weights where the hub does not answer: from the cache, or one message at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from convattn.errors import UserError
from convattn.tasks.building import build_model
from convattn.tasks.config import NetworkConfig, Recipe, TaskName
from convattn.tasks.hub import at_hand
from convattn.tasks.task import build_network

MODEL = "test_resnet"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that refuses every call, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("task", "head", "model"),
    [
        ("classification", None, MODEL),
        ("classification", None, "hf-hub:timm/test_resnet.r160_in1k"),
        ("detection", "faster_rcnn", "resnet10t"),
        ("segmentation", "upernet", "resnet10t"),
    ],
)
def test_weights_that_cannot_be_fetched_are_one_message_at_once(
    task: TaskName, head: str, model: str, unreachable: Path
) -> None:
    recipe = Recipe(model, task=task, network=NetworkConfig(head), pretrained=True)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_model(recipe, 3) if head is None else build_network(recipe, 3)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert f"not in this machine's cache ({unreachable}), and the network does not answer: connect to" in message
    assert "do without (pretrained=false)" in message
    assert "\n" not in message
    assert not constants.HF_HUB_OFFLINE


def test_weights_of_the_cache_need_no_network(unreachable: Path) -> None:
    torch.manual_seed(1)
    stored = timm.create_model(MODEL).state_dict()
    repository = unreachable / f"models--timm--{MODEL}.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(stored, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    torch.manual_seed(2)
    model = build_model(Recipe(MODEL, pretrained=True), 1000)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that answers everything with 404; what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


def test_a_hub_that_answers_is_asked_and_nobody_else_is(hub: list[str]) -> None:
    with at_hand(Recipe(MODEL, pretrained=True)):
        assert not constants.HF_HUB_OFFLINE
    assert hub == ["/"]
    with at_hand(Recipe(MODEL)):
        pass
    assert hub == ["/"]
