"""Fine-tuning: what is frozen, learning rates by layer, batch norms that are estimated anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import timm.scheduler
import torch
from dense_runs import recipe
from lightning import Callback
from torch import nn

from convattn.convert import convert
from convattn.errors import UserError
from convattn.tasks.building import build_model
from convattn.tasks.classification import ClassificationObjective
from convattn.tasks.config import OptimizerConfig, Recipe
from convattn.tasks.finetuning import NORM_IMAGES, freeze, norm_images
from convattn.tasks.inference import load_model
from convattn.tasks.layers import learning_rate_scales
from convattn.tasks.module import TrainingModule, make_optimizer, parameter_groups
from convattn.tasks.recipes import load_recipe
from convattn.tasks.task import build_network, task_of
from convattn.tasks.training import prepare, train

TINY = {"model": "test_resnet", "model_args": {}, "batch_size": 16, "epochs": 1, "trainer.loggers": []}
TINY |= {"trainer.accelerator": "cpu", "memory_format": "contiguous", "mix": {"prob": 0}, "data.workers": 0}
TINY |= {"optimizer": {"name": "sgd", "lr": 1e-12, "weight_decay": 0}, "schedule.warmup": 0, "data.image_size": 32}


def frozen(places: Any, task: str = "classification", model: str = "test_resnet") -> tuple[nn.Module, set[str]]:
    """A network and the first words of the names of its parameters that are frozen, as its backbone has them."""
    wanted = Recipe(model) if task == "classification" else recipe(task, f"model={model}", "model_args={}")
    net = build_network(wanted, 3)
    freeze(task_of(wanted), net, places)
    names = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    words = {name.removeprefix("backbone.features.net.").removeprefix("backbone.").partition(".")[0] for name in names}
    return net, words


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (2, {"conv1", "bn1", "layer1", "layer2"}),
        ("layer2", {"layer2"}),
        (("conv1", "layer*.0.conv1"), {"conv1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_freeze_takes_names_globs_and_stages_of_the_backbone(places: Any, expected: set[str], task: str) -> None:
    assert frozen(places, task)[1] == expected


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("layr2", "freeze: nothing in ResNet is called 'layr2': did you mean layer2"),
        (9, "freeze: no stage 9: "),
        ("*", "freeze: '*' leaves nothing to train: name less of the network"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(places: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        frozen(places)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_frozen_batch_norms_keep_their_statistics_in_training() -> None:
    net, _ = frozen(1)
    wanted = load_recipe("digits", {"model": "test_resnet", "model_args": {}, "ema.decay": None})
    module = TrainingModule(net, wanted, ClassificationObjective(wanted, 3), batches_per_epoch=2).train()
    assert not any(m.training for m in net.layer1.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in net.layer4.modules())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module.loss((torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])))
    changed = {
        name.partition(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("estimated", [0, 16])
def test_a_run_leaves_the_statistics_of_frozen_batch_norms_as_they_were(
    estimated: int, photos: Path, tmp_path: Path
) -> None:
    settings = {**TINY, "data.folder": str(photos), "ema.decay": None, "freeze": 1, "norm_images": estimated}
    job = prepare(load_recipe("folder", settings), tmp_path)
    before = {name: value.clone() for name, value in job.model.state_dict().items() if "running" in name}
    train(job, [])
    after = load_model(tmp_path / "latest").model.state_dict()
    kept = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert kept == {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}


def test_a_learning_rate_falls_by_layer_as_timm_groups_them() -> None:
    net = timm.create_model("resnet18", num_classes=3)
    scales = learning_rate_scales(net, 0.5)
    theirs = timm.optim.param_groups_layer_decay(net, layer_decay=0.5)
    expected = {parameter: group["lr_scale"] for group in theirs for parameter in group["params"]}
    assert {name: expected[parameter] for name, parameter in net.named_parameters()} == scales


@pytest.mark.parametrize("model", ["resnet18", "test_convnext", "acmix_pvt_tiny"])
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_backbone_of_a_detector_or_segmenter_learns_more_slowly_the_deeper(task: str, model: str) -> None:
    net = build_network(recipe(task, f"model={model}", "model_args={}"), 3)
    scales = learning_rate_scales(net, 0.5)
    inside = [scale for name, scale in scales.items() if name.startswith("backbone.") and ".fpn." not in name]
    assert inside == sorted(inside)
    assert len(set(inside)) >= 4
    assert max(inside) < 1
    assert {scale for name, scale in scales.items() if "backbone." not in name} == {1.0}


def test_the_optimizer_and_the_schedule_follow_the_layers() -> None:
    net = build_model(Recipe("test_resnet"), 3)
    wanted = OptimizerConfig(lr=0.1, layer_decay=0.5)
    groups = parameter_groups(net, wanted)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    optimizer = make_optimizer(net, wanted)
    schedule, _ = timm.scheduler.create_scheduler_v2(optimizer, "cosine", num_epochs=2)
    schedule.step(0)
    assert {(group["lr_scale"], round(group["lr"], 9)) for group in optimizer.param_groups} == {
        (0.5**n, round(0.1 * 0.5**n, 9)) for n in range(6)
    }
    assert [set(group) - {"params"} for group in parameter_groups(net, OptimizerConfig())] == [set(), {"weight_decay"}]


def test_a_network_that_says_nothing_of_its_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.layer_decay: Linear says nothing of its layers"):
        learning_rate_scales(nn.Linear(2, 2), 0.5)


def test_batch_norms_are_estimated_anew_for_an_acmix_that_starts_from_a_convolution() -> None:
    net = build_model(Recipe("test_resnet"), 3)
    assert norm_images(Recipe("test_resnet"), net) == 0
    assert norm_images(Recipe("test_resnet", norm_images=7), net) == 7
    assert norm_images(Recipe("test_resnet"), convert(net, "xvolution")) == 0
    converted = convert(net, "acmix", where=4)
    assert norm_images(Recipe("test_resnet"), converted) == NORM_IMAGES
    assert norm_images(Recipe("test_resnet", norm_images=0), converted) == 0


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_estimate_is_that_of_the_first_batches_and_goes_to_the_moving_average(
    decay: float | None, photos: Path, tmp_path: Path
) -> None:
    settings = {**TINY, "data.folder": str(photos), "ema.decay": decay, "norm_images": 32}
    seen: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                state = pl_module.model.state_dict()
                seen.update({name: value.clone() for name, value in state.items() if "running" in name})

    job = prepare(load_recipe("folder", settings), tmp_path)
    twin = build_model(job.recipe, 4)
    twin.load_state_dict(job.model.state_dict())
    train(job, [Look()])
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    images, _ = first_batches(job, 2)
    with torch.no_grad():
        for batch in images:
            twin.train()(batch)
    assert seen
    for name, value in seen.items():
        torch.testing.assert_close(value, twin.state_dict()[name])
    assert load_model(tmp_path / "latest").recipe.model == "test_resnet"


def first_batches(job: Any, count: int) -> tuple[list[torch.Tensor], Any]:
    """The images of the first training batches."""
    from convattn.data.sampler import GlobalBatchSampler
    from convattn.tasks.loaders import SkipLog

    sampler = GlobalBatchSampler(len(job.data.train), job.recipe.batch_size, seed=job.recipe.seed)
    loader = task_of(job.recipe).training_loader(job.recipe, job.data, sampler, SkipLog())
    return [images for (images, _), _ in zip(loader, range(count), strict=False)], loader
