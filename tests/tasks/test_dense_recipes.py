"""The recipes of the papers' other halves: detection, instances and segmentation, held against the tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dense_runs import assert_taken
from safetensors.torch import save_file
from torch import nn

import convattn.detection
import convattn.segmentation
from convattn.layers.augmented import AugmentedConv2d
from convattn.layers.global_attention import GlobalAttention2d
from convattn.layers.involution import Involution2d
from convattn.layers.pssa import PSSA
from convattn.layers.xvolution import MultiConvolution, XVolution
from convattn.tasks.classification import ClassificationObjective
from convattn.tasks.config import Recipe
from convattn.tasks.module import TrainingModule
from convattn.tasks.recipes import load_recipe, parse_overrides, recipe_names
from convattn.tasks.task import build_network

CLASSES = {"coco": 80, "ade20k": 150}
DENSE = [name for name in recipe_names() if name.partition("-")[0] in CLASSES]
ROWS = [(name, row) for name in DENSE for row in load_recipe(name).published]
XVOLUTION = [name for name in DENSE if name.endswith(("1x", "2x", "3x", "6x")) and "xvolution" in name]

AP = ("box_AP", "box_AP50", "box_AP75")
BOXES = (*AP, "box_APs", "box_APm", "box_APl")
BY_SIZE = ("AP", "APs", "APm", "APl")
OF_BOXES = tuple(f"box_{name}" for name in BY_SIZE)
OF_BOXES_AND_MASKS = (*OF_BOXES, *(f"mask_{name}" for name in BY_SIZE))
GLOBAL = 'xvolution_resnet50 model_args.operator_args={"attention":"global"}'
INVOLUTION = 'xvolution_resnet50 model_args.operator_args={"attention":"involution"}'

# the tables by recipe: the figures' names, then a row for each model
ACMIX: dict[str, tuple[tuple[str, ...], dict[str, tuple[float, ...]]]] = {
    "ade20k-semantic_fpn-pvt": (
        ("mean_iou",),
        {"pvt_v1_tiny": (37.1,), "acmix_pvt_tiny": (42.7,), "pvt_v1_small": (42.4,), "acmix_pvt_small": (46.4,)},
    ),
    "ade20k-upernet-swin": (
        ("mean_iou",),
        {"swin_tiny": (44.5,), "acmix_swin_tiny": (45.3,), "swin_small": (47.6,), "acmix_swin_small": (48.7,)},
    ),
    "coco-retinanet-resnet": (
        AP,
        {
            "conv_resnet50": (36.7, 56.0, 39.0),
            "sasa_resnet50": (36.8, 54.6, 39.3),
            "acmix_resnet50": (38.3, 56.2, 40.0),
        },
    ),
    "coco-retinanet-san": (AP, {"san19": (38.2, 56.0, 41.1), "acmix_san19": (39.1, 58.9, 41.6)}),
    "coco-retinanet-pvt-1x": (AP, {"pvt_v1_tiny": (36.7, 56.9, 38.9), "acmix_pvt_tiny": (40.5, 61.2, 42.7)}),
    "coco-retinanet-pvt-3x": (AP, {"pvt_v1_tiny": (39.4, 59.8, 42.0), "acmix_pvt_tiny": (42.0, 62.8, 44.6)}),
    "coco-mask_rcnn-swin": (AP, {"swin_tiny": (46.0, 67.8, 50.4), "acmix_swin_tiny": (47.0, 69.0, 51.8)}),
    "coco-cascade_mask_rcnn-swin": (AP, {"swin_tiny": (50.5, 69.3, 54.9), "acmix_swin_tiny": (51.1, 69.8, 55.6)}),
}
TABLE_2 = {
    "conv_resnet50": (38.6, 59.7, 42.0, 23.6, 42.3, 50.0),
    "multiconv_resnet50": (38.4, 59.0, 41.7, 22.2, 41.6, 49.9),
    "aa_resnet50": (39.4, 60.6, 42.7, 24.4, 42.9, 50.9),
    "involution_resnet50": (38.8, 59.9, 42.1, 23.6, 41.9, 50.2),
    INVOLUTION: (39.2, 60.2, 42.7, 23.6, 42.0, 50.9),
    "global_resnet50": (38.5, 60.5, 41.7, 24.2, 42.2, 48.6),
    GLOBAL: (40.3, 61.8, 43.7, 24.6, 43.9, 52.0),
    "pssa_resnet50": (38.7, 60.4, 42.2, 23.8, 42.3, 49.1),
    "xvolution_resnet50": (40.1, 61.3, 43.6, 24.0, 43.6, 51.4),
}
TABLE_3 = {
    "conv_resnet50": (39.1, 23.2, 42.4, 51.2, 35.7, 17.4, 38.1, 51.4),
    "aa_resnet50": (40.2, 25.0, 43.6, 52.0, 36.4, 18.8, 39.2, 52.5),
    "involution_resnet50": (39.6, 23.7, 42.9, 51.4, 35.8, 18.0, 38.4, 51.3),
    INVOLUTION: (39.9, 24.1, 42.9, 52.0, 35.9, 18.2, 38.5, 51.8),
    "global_resnet50": (39.4, 24.1, 43.3, 49.8, 36.1, 18.1, 39.0, 51.0),
    GLOBAL: (41.1, 25.4, 44.3, 53.0, 37.2, 19.2, 40.0, 53.1),
    "pssa_resnet50": (39.5, 23.4, 43.1, 50.7, 36.0, 17.1, 38.6, 51.3),
    "xvolution_resnet50": (40.9, 24.8, 43.8, 53.2, 36.8, 18.5, 39.2, 52.7),
}
TABLE_4 = {
    'pssa_resnet50 model_args.operator_args={"position":"bias"}': (39.1, 24.1, 42.7, 49.5),
    'xvolution_resnet50 model_args.operator_args={"position":"bias"}': (40.2, 24.0, 43.8, 51.7),
}
TABLE_6 = {
    "2x": {
        "conv_resnet50": (40.1, 61.1, 43.7, 23.9, 43.7, 52.2),
        "pssa_resnet50": (40.4, 61.9, 44.1, 24.9, 44.1, 51.4),
        "xvolution_resnet50": (42.0, 63.8, 45.9, 26.4, 45.5, 54.2),
    },
    "3x": {
        "conv_resnet50": (40.7, 61.5, 44.5, 24.5, 44.5, 52.5),
        "pssa_resnet50": (41.2, 62.8, 44.9, 25.4, 44.9, 52.3),
        "xvolution_resnet50": (42.7, 63.9, 46.3, 26.5, 46.3, 54.8),
    },
    "6x": {
        "conv_resnet50": (41.0, 61.7, 44.8, 24.2, 44.3, 53.1),
        "pssa_resnet50": (41.7, 63.1, 45.4, 25.8, 45.1, 53.4),
        "xvolution_resnet50": (42.8, 64.0, 46.4, 26.9, 46.0, 55.0),
    },
}
# X-volution's table 7: epochs, training steps, the steps after which the learning rate falls
TABLE_7 = {
    "1x": (12, 90_000, (60_000, 80_000)),
    "2x": (24, 180_000, (120_000, 160_000)),
    "3x": (36, 270_000, (210_000, 250_000)),
    "6x": (72, 540_000, (420_000, 500_000)),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe_of(name: str, row: str) -> Recipe:
    """The recipe with what a row of its table sets: a model, then overrides."""
    model, *words = row.split()
    return load_recipe(name, {"model": model, **parse_overrides(words)})


def build(name: str, recipe: Recipe) -> nn.Module:
    """The recipe's network on the meta device."""
    head, classes = str(recipe.network.head), CLASSES[name.partition("-")[0]]
    options: dict[str, Any] = recipe.network.args
    with torch.device("meta"):
        if recipe.task == "segmentation":
            backbone = timm.create_model(recipe.model, features_only=True, **recipe.model_args)
            return getattr(convattn.segmentation, head)(backbone, num_classes=classes, **options)
        make = getattr(convattn.detection, head)
        return make(recipe.model, classes, backbone_args=recipe.model_args, pretrained=recipe.pretrained, **options)


def named(names: tuple[str, ...], rows: dict[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {row: dict(zip(names, values, strict=True)) for row, values in rows.items()}


def rates(recipe: Recipe, batches_per_epoch: int, steps: list[int]) -> list[float]:
    """The learning rate at some steps of a run."""
    module = TrainingModule(
        nn.Linear(1, 1), recipe, ClassificationObjective(recipe, 10), batches_per_epoch=batches_per_epoch
    )
    optimizer = module.configure_optimizers()
    found = []
    for step in steps:
        module.schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_there_is_a_recipe_for_every_table() -> None:
    assert {*ACMIX, *(f"coco-faster_rcnn-xvolution-{name}" for name in TABLE_7), "coco-mask_rcnn-xvolution"} == {*DENSE}


@pytest.mark.parametrize("name", ACMIX)
def test_figures_are_those_of_acmix(name: str) -> None:
    assert load_recipe(name).published == named(*ACMIX[name])


def test_figures_are_those_of_xvolution() -> None:
    once = named(BOXES, TABLE_2) | named(OF_BOXES, TABLE_4)
    assert load_recipe("coco-faster_rcnn-xvolution-1x").published == once
    for schedule, rows in TABLE_6.items():
        assert load_recipe(f"coco-faster_rcnn-xvolution-{schedule}").published == named(BOXES, rows)
    assert load_recipe("coco-mask_rcnn-xvolution").published == named(OF_BOXES_AND_MASKS, TABLE_3)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_builds_its_network(name: str, row: str) -> None:
    recipe = recipe_of(name, row)
    network = build(name, recipe)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.num_classes == CLASSES[name.partition("-")[0]]
    if recipe.task != "segmentation":
        assert (recipe.task == "instances") == bool(getattr(network, "has_masks", False))


@pytest.mark.parametrize("name", DENSE)
def test_a_recipe_says_what_all_of_them_share(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.batch_size == 16
    assert not recipe.pretrained
    assert recipe.optimizer.clip_grad is None
    if name.startswith("ade20k-"):
        assert asdict(recipe.evaluation) | {"short_side": 512, "max_size": 2048, "mode": "whole"} == asdict(
            recipe.evaluation
        )
        assert recipe.data.reduce_zero_label is True
        assert recipe.segmentation_augment.crop == (512, 512)
        return
    assert recipe.detection_augment.horizontal_flip == 0.5
    assert recipe.detection_augment.short_sides == ()  # the detector resizes
    sizes = recipe.network.args["min_size"]
    assert (sizes if isinstance(sizes, int) else sizes[-1], recipe.network.args["max_size"]) == (800, 1333)


@pytest.mark.parametrize("name", ["coco-retinanet-resnet", "coco-retinanet-san"])
def test_resnet_and_san_detect_as_supplement_b_says(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.decayed) == ("momentum", 0.01, "all")
    assert (recipe.epochs, recipe.schedule.milestones) == (12, (8, 11))
    steps = [0, 250, 500, 7999, 8000, 11000, 11999]
    assert rates(recipe, 1000, steps) == pytest.approx([1e-5, 5.005e-3, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay", "epochs", "milestones"),
    [
        ("coco-retinanet-pvt-1x", 1e-4, 1e-4, 12, (8, 11)),
        ("coco-retinanet-pvt-3x", 1e-4, 1e-4, 36, (27, 33)),
        ("coco-mask_rcnn-swin", 1e-4, 0.05, 36, (27, 33)),
        ("coco-cascade_mask_rcnn-swin", 1e-4, 0.05, 36, (27, 33)),
    ],
)
def test_transformers_detect_as_their_own_papers_say(
    name: str, lr: float, weight_decay: float, epochs: int, milestones: tuple[int, int]
) -> None:
    recipe = load_recipe(name)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", lr, weight_decay)
    assert (recipe.epochs, recipe.schedule.milestones, recipe.schedule.decay_rate) == (epochs, milestones, 0.1)
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_lr) == (500, pytest.approx(lr / 1000))
    multi_scale = isinstance(recipe.network.args["min_size"], list)
    assert multi_scale == (epochs == 36)


@pytest.mark.parametrize(
    ("name", "steps", "lr", "warmup"), [("semantic_fpn-pvt", 80_000, 1e-4, 0), ("upernet-swin", 160_000, 6e-5, 1500)]
)
def test_segmenters_train_for_the_published_steps(name: str, steps: int, lr: float, warmup: int) -> None:
    """ADE20K has 20,210 images for training; an epoch leaves out those that fill no batch."""
    recipe = load_recipe(f"ade20k-{name}")
    batches = 20_210 // recipe.batch_size
    assert recipe.epochs * batches == pytest.approx(steps, abs=batches / 2)
    last = recipe.epochs * batches - 1
    first, after_warmup, end = rates(recipe, batches, [0, warmup, last])
    assert first == pytest.approx(recipe.schedule.warmup_lr if warmup else lr)
    remaining = 1 - warmup / (recipe.epochs * batches)
    assert after_warmup == pytest.approx(lr * remaining**recipe.schedule.power, rel=1e-9)
    assert 0 < end < lr / 1e3


@pytest.mark.parametrize("name", XVOLUTION)
def test_the_schedules_are_those_of_table_7(name: str) -> None:
    recipe = load_recipe(name)
    epochs, steps, falls = TABLE_7[name.rpartition("-")[2]]
    assert recipe.epochs == epochs
    batches = steps // epochs
    assert batches == 7500
    assert list(recipe.schedule.milestones) == pytest.approx([fall / batches for fall in falls], abs=1e-3)
    halfway = (falls[0] + falls[1]) // 2
    found = rates(recipe, batches, [0, 500, 1000, falls[0] - batches, halfway, steps - 1])
    assert found == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 2e-3, 2e-4])


@pytest.mark.parametrize("name", ["coco-faster_rcnn-xvolution-1x", "coco-mask_rcnn-xvolution"])
@pytest.mark.parametrize(
    ("row", "operator"),
    [
        ("aa_resnet50", AugmentedConv2d),
        ("involution_resnet50", Involution2d),
        ("global_resnet50", GlobalAttention2d),
        ("pssa_resnet50", PSSA),
        ("xvolution_resnet50", XVolution),
        ("multiconv_resnet50", MultiConvolution),
    ],
)
def test_an_operator_stands_in_the_last_stage_alone(name: str, row: str, operator: type[nn.Module]) -> None:
    net = build(name, recipe_of(name, row)).backbone.features.net
    assert [type(block.conv2) for block in net.layer4] == [operator] * 3
    others = [block.conv2 for stage in (net.layer1, net.layer2, net.layer3) for block in stage]
    assert {type(conv) for conv in others} == {nn.Conv2d}


@pytest.mark.parametrize("name", [*XVOLUTION, "coco-mask_rcnn-xvolution"])
def test_xvolutions_detectors_have_detectron2s_defaults(name: str) -> None:
    recipe = load_recipe(name)
    network = build(name, recipe)
    assert {network.rpn.box_loss, network.roi_heads.box_loss} == {"l1"}
    for stage in ("layer2", "layer3", "layer4"):
        block = getattr(network.backbone.features.net, stage)[0]
        assert (block.conv1.stride, block.downsample[0].stride) == ((2, 2), (2, 2))
    assert recipe.model_args == load_recipe("imagenet-xvolution").model_args, "its weights are of the same network"


@pytest.mark.parametrize("name", [name for name in DENSE if name.startswith("coco-")])
def test_images_without_objects_are_not_trained_on(name: str) -> None:
    assert load_recipe(name).data.without_objects == "drop"


def test_rows_with_options_make_the_operators_that_they_name() -> None:
    name = "coco-faster_rcnn-xvolution-1x"
    kinds = {
        row: build(name, recipe_of(name, row)).backbone.features.net.layer4[0].conv2 for row in (GLOBAL, INVOLUTION)
    }
    assert isinstance(kinds[GLOBAL].attention, GlobalAttention2d)
    assert isinstance(kinds[INVOLUTION].attention, Involution2d)
    plain, biased = (build(name, recipe_of(name, row)) for row in TABLE_4)
    assert plain.backbone.features.net.layer4[0].conv2.position is not None
    assert biased.backbone.features.net.layer4[0].conv2.attention.position is not None


@pytest.mark.parametrize(
    ("row", "strides"), [("conv_resnet50", (1, 2)), ("sasa_resnet50", (2, 1)), ("acmix_resnet50", (2, 1))]
)
def test_table_3s_operators_follow_the_stride(row: str, strides: tuple[int, int]) -> None:
    net = build("coco-retinanet-resnet", recipe_of("coco-retinanet-resnet", row)).backbone.features.net
    block = net.layer2[0]
    assert block.conv1.stride == (strides[0], strides[0])
    if row == "conv_resnet50":
        assert block.conv2.stride == (strides[1], strides[1])


@pytest.mark.parametrize("name", [name for name in DENSE if load_recipe(name).network.args.get("frozen_stages")])
def test_what_is_frozen_stays_so_in_training(name: str) -> None:
    recipe = load_recipe(name)
    features = build(name, recipe).train().backbone.features
    norms = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    fixed = {key for key, parameter in features.named_parameters() if not parameter.requires_grad}
    assert any(key.endswith(("conv1.weight", "conv_in.weight")) for key in fixed)
    assert any(parameter.requires_grad for parameter in features.parameters())


@pytest.mark.parametrize(
    ("name", "row", "millions"),
    [
        ("ade20k-semantic_fpn-pvt", "pvt_v1_tiny", 17),
        ("ade20k-semantic_fpn-pvt", "acmix_pvt_tiny", 17),
        ("ade20k-semantic_fpn-pvt", "pvt_v1_small", 28),
        ("ade20k-semantic_fpn-pvt", "acmix_pvt_small", 29),
        ("ade20k-upernet-swin", "swin_tiny", 60),
        ("ade20k-upernet-swin", "acmix_swin_tiny", 60),
        ("ade20k-upernet-swin", "swin_small", 81),
        ("ade20k-upernet-swin", "acmix_swin_small", 82),  # 81 published: the convolution paths add 0.74 M to 81.26
        ("coco-mask_rcnn-swin", "swin_tiny", 48),  # this and the next from Swin's paper
        ("coco-cascade_mask_rcnn-swin", "swin_tiny", 86),
    ],
)
def test_parameters_are_the_published_ones(name: str, row: str, millions: int) -> None:
    count = sum(parameter.numel() for parameter in build(name, recipe_of(name, row)).parameters())
    assert round(count / 1e6) == millions


SCENES = [name for name in recipe_names() if name.startswith("scenes-")]
HOSTS = ("resnet10t", "conv_resnet18", "acmix_resnet18", "xvolution_resnet18", "acmix_san10", "acmix_pvt_tiny")


@pytest.mark.parametrize("model", [*HOSTS, "acmix_swin_tiny"])
@pytest.mark.parametrize("name", SCENES)
def test_a_scenes_recipe_makes_every_host_small(name: str, model: str) -> None:
    net = build_network(load_recipe(name, {"model": model}), 11)
    assert sum(parameter.numel() for parameter in net.parameters()) < 10e6


@pytest.mark.parametrize(
    ("name", "row", "small"),
    [
        ("coco-retinanet-resnet", "acmix_resnet50", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
        ("coco-retinanet-san", "acmix_san19", {"layers": [1, 1, 1, 1, 1], "widths": [32, 32, 32, 32, 32]}),
        ("coco-mask_rcnn-swin", "acmix_swin_tiny", {"embed_dim": 24}),
        ("ade20k-upernet-swin", "acmix_swin_tiny", {"embed_dim": 24}),
        ("ade20k-semantic_fpn-pvt", "acmix_pvt_tiny", {"embed_dims": [16, 16, 40, 64]}),
    ],
)
def test_the_backbone_starts_from_a_classifiers_file(
    name: str, row: str, small: dict[str, Any], tmp_path: Path
) -> None:
    """As the page of recipes tells it: pretrained=true and the file in model_args.pretrained_cfg_overlay."""
    classifier = timm.create_model(row, num_classes=7, **small)
    save_file(
        {key: tensor.contiguous() for key, tensor in classifier.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    given = {"pretrained": True, "model_args.pretrained_cfg_overlay": {"file": str(tmp_path / "weights.safetensors")}}
    recipe = load_recipe(name, {"model": row, **given})
    net = timm.create_model(row, pretrained=recipe.pretrained, features_only=True, **{**recipe.model_args, **small})
    ours = {key.removeprefix("model."): tensor for key, tensor in net.state_dict().items()}
    assert_taken(ours, classifier.state_dict())
