from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from typer.testing import CliRunner

from convattn.cli import app
from convattn.errors import UserError
from convattn.tasks import lr_finder
from convattn.tasks.lr_finder import find_lr
from convattn.tasks.recipes import load_recipe
from convattn.tasks.training import prepare

SETTINGS = {
    "model": "test_vit",
    "model_args": {"img_size": 32},
    "batch_size": 8,
    "data.workers": 0,
    "trainer.accelerator": "cpu",
    "optimizer.layer_decay": 0.5,
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(lr_finder, "STEPS", 24)


@pytest.fixture
def taken() -> Iterator[list[tuple[float, float]]]:
    """The lowest and the highest learning rate of every step of an optimizer."""
    found: list[tuple[float, float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        found.append((min(rates), max(rates)))

    handle = register_optimizer_step_post_hook(note)
    yield found
    handle.remove()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_optimizer_takes_the_rates_that_are_tried(
    accumulate: int, taken: list[tuple[float, float]], photos: Path, tmp_path: Path
) -> None:
    """And the layers keep their parts of it."""
    recipe = load_recipe("digits", {**SETTINGS, "data.folder": str(photos), "accumulate": accumulate})
    found = find_lr(prepare(recipe, tmp_path))
    assert found.rates[0] == lr_finder.LOWEST
    assert found.rates[-1] == pytest.approx(lr_finder.HIGHEST, rel=0.5)
    np.testing.assert_allclose([highest for _, highest in taken], found.rates, rtol=1e-6)
    assert all(lowest < highest / 2 for lowest, highest in taken)
    assert found.rate in found.rates
    assert len(found.losses) == len(found.rates)
    assert not list(tmp_path.iterdir()), "no run is made"


def test_the_rate_is_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 1, 100)
    losses = 1 / (1 + (rates / 1e-3) ** 2) + rates**2 * 9
    losses[50] = np.nan
    assert lr_finder._steepest(rates, losses) == pytest.approx(1e-3, rel=0.3)


def test_a_loss_that_diverges_at_once_suggests_nothing() -> None:
    with pytest.raises(UserError, match="diverged at once"):
        lr_finder._steepest(np.geomspace(1e-6, 1e-5, 12), np.full(12, np.nan))


def test_the_command_says_how_to_use_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=test_vit", "model_args={img_size: 32}", "batch_size=8", "data.workers=0", "--accelerator=cpu"]
    done = CliRunner().invoke(app, ["train", "--recipe=digits", f"--data={photos}", "--find-lr", *words])
    assert done.exit_code == 0, done.output
    *_, rate, picture, following = done.output.strip().splitlines()
    suggested = rate.split()[2].rstrip(":")
    assert f"with --lr {suggested} in place of --find-lr" in following
    assert picture.split() == ["picture", "runs/lr-test_vit.svg"]
    assert f"suggested: {suggested}" in Path("runs/lr-test_vit.svg").read_text()
    assert [path.name for path in Path("runs").iterdir()] == ["lr-test_vit.svg"]
    assert "Finding" not in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "runs/latest"], "leave --resume and --folds out"),
        (["--folds", "3"], "leave --resume and --folds out"),
        (["--strategy", "fsdp", "model=test_vit", "model_args={img_size: 32}"], "--strategy ddp"),
    ],
)
def test_what_it_is_not_for_is_refused(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["train", "--find-lr", *words])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
