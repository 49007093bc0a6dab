"""Every family of networks trains on the digits recipe: an epoch with falling loss, from the images to the report."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from convattn.tasks.recipes import load_recipe
from convattn.tasks.training import prepare, train
from tests.quick import slow_but

RESNET = {"channels": [8, 8, 16, 16]}
SAN = {"widths": [32, 64, 96], "layers": [1, 1, 1], "kernels": [3, 7, 7]}
PVT = {"embed_dims": [16, 16, 32, 32], "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8]}

NARROW: dict[str, dict[str, Any]] = {
    "acmix_resnet14": RESNET,
    "san10": SAN,
    "acmix_san10": SAN,
    "pvt_v1_tiny": PVT,
    "acmix_pvt_tiny": PVT,
    "swin_tiny": SWIN,
    "acmix_swin_tiny": SWIN,
    "conv_swin_tiny": SWIN,
    "lr_resnet14": RESNET,
    "aa_resnet14": RESNET,
    "bot_resnet14": RESNET,
    "involution_resnet14": {"channels": [16, 16, 16, 16]},
}
"""A model of each family, and what makes it narrow; the rest of its options are the recipe's for that family."""

WHOLE = [*NARROW, "conv_resnet14", "sasa_resnet14", "acmix_resnet50", "lr_resnet50", "involution_resnet50"]
WHOLE += ["acmix_pvt_small", "acmix_swin_small", "swin_tiny_patch4_window7_224"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def epoch_of_losses(model: str, settings: dict[str, Any], out: Path) -> list[float]:
    """The losses of one epoch of the digits recipe; the run must end with an accuracy and a report."""
    recipe = load_recipe("digits", {"model": model, "epochs": 1, **settings})
    losses = Losses()
    result = train(prepare(recipe, out), [losses])
    assert result is not None
    assert 0 <= result.accuracy <= 1
    assert (out / "latest" / "report.html").is_file()
    return losses.values


def check_fall(losses: list[float]) -> None:
    part = len(losses) // 4
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    assert last < 0.95 * first, f"the loss went from {first:.3f} to {last:.3f}"


@pytest.mark.parametrize("model", slow_but([name for name in NARROW if name.startswith("acmix_")], NARROW))
def test_an_epoch_of_the_digits_lowers_the_loss(model: str, tmp_path: Path) -> None:
    narrow = {f"model_args.{key}": value for key, value in NARROW[model].items()}
    check_fall(epoch_of_losses(model, narrow | {"data.image_size": 16, "batch_size": 64}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("model", WHOLE)
def test_an_epoch_of_the_digits_at_the_recipes_own_size_lowers_the_loss(model: str, tmp_path: Path) -> None:
    check_fall(epoch_of_losses(model, {}, tmp_path))


def test_the_table_of_the_digits_leaves_timms_own_networks_alone() -> None:
    for model in ("resnet18", "resnet50", "test_resnet", "seresnet50", "pvt_v2_b0", "swinv2_tiny_window8_256"):
        assert load_recipe("digits", {"model": model}).model_args == {}
