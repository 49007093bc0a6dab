"""A detector or a segmenter starts from its own backbone's weights, whole, or says what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_runs import assert_taken
from torch import Tensor, nn

from convattn.errors import UserError
from convattn.tasks.building import build_model
from convattn.tasks.checkpoints import describe, write_weights
from convattn.tasks.config import Recipe
from convattn.tasks.recipes import load_recipe
from convattn.tasks.starting import start

RESNET = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}
SMALL: dict[str, dict[str, Any]] = {
    "resnet": RESNET,
    "san": {"layers": [1, 1, 1, 1, 1], "widths": [32, 32, 32, 32, 32]},
    "pvt": {"embed_dims": [16, 16, 40, 64]},
    "swin": {"embed_dim": 24, "depths": [1, 1, 1, 1]},
}
HOSTS = [
    ("coco-faster_rcnn-xvolution-1x", "imagenet-xvolution", "xvolution_resnet50"),
    ("coco-retinanet-resnet", "imagenet-resnet", "conv_resnet50"),
    ("coco-retinanet-san", "imagenet-san", "acmix_san19"),
    ("coco-mask_rcnn-swin", "imagenet-swin", "acmix_swin_tiny"),
    ("ade20k-semantic_fpn-pvt", "imagenet-pvt", "acmix_pvt_tiny"),
    ("ade20k-upernet-swin", "imagenet-swin", "swin_tiny"),
]
Saved = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small(name: str, model: str, **settings: Any) -> Recipe:
    family = next(options for host, options in SMALL.items() if host in model)
    return load_recipe(
        name, {"model": model, **{f"model_args.{key}": value for key, value in family.items()}, **settings}
    )


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Write the weights of a recipe's freshly drawn classifier of three classes as its run would."""

    def save(name: str, model: str, **settings: Any) -> Path:
        recipe = small(name, model, **settings)
        torch.manual_seed(1)
        classifier = build_model(recipe, 3)
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2)
        path = tmp_path / f"{model}.safetensors"
        tensors = {key: value.contiguous() for key, value in classifier.state_dict().items()}
        write_weights(path, tensors, describe(recipe, ["a", "b", "c"]))
        return path

    return save


def backbone_of(model: nn.Module) -> dict[str, Tensor]:
    net = model.backbone.features.net if hasattr(model.backbone, "features") else model.backbone
    return {key.removeprefix("model."): value for key, value in net.state_dict().items()}


@pytest.mark.parametrize(("dense", "imagenet", "model"), HOSTS)
def test_every_tensor_of_the_backbone_is_the_files(dense: str, imagenet: str, model: str, saved: Saved) -> None:
    from safetensors.torch import load_file

    path = saved(imagenet, model)
    net = start(small(dense, model, backbone_weights=str(path)), 5)
    assert_taken(backbone_of(net), load_file(path))


@pytest.mark.parametrize(
    ("trained", "wanted", "message"),
    [
        ({}, {"model_args.operator_args": {"attention": "global"}}, r"operator_args not set, the recipe has .*global"),
        ({"model_args.stages": [2]}, {}, r"stages \[2\], the recipe has not set"),
        ({}, {"model_args.operator_args.kernel_size": 5}, "size mismatch for layer4"),
    ],
)
def test_another_configuration_is_refused_by_its_tensors(
    trained: dict[str, Any], wanted: dict[str, Any], message: str, saved: Saved
) -> None:
    path = saved("imagenet-xvolution", "xvolution_resnet50", **trained)
    recipe = small("coco-faster_rcnn-xvolution-1x", "xvolution_resnet50", backbone_weights=str(path), **wanted)
    with pytest.raises(UserError, match=message) as raised:
        start(recipe, 5)
    assert ".0.conv2." in str(raised.value), "a tensor is named"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("other", ["pssa_resnet50", "conv_resnet50", "aa_resnet50", "involution_resnet50"])
def test_another_networks_weights_are_refused(other: str, saved: Saved) -> None:
    path = saved("imagenet-xvolution", other)
    recipe = small("coco-faster_rcnn-xvolution-1x", "xvolution_resnet50", backbone_weights=str(path))
    with pytest.raises(UserError, match=f"the weights are of {other}, the recipe has xvolution_resnet50"):
        start(recipe, 5)


def test_a_stride_in_another_place_is_refused_though_all_tensors_fit(saved: Saved) -> None:
    """The weights are alike, what they compute is not: table 3's networks stride in the first 1x1."""
    path = saved("imagenet-resnet", "acmix_resnet50")
    recipe = small("coco-retinanet-resnet", "acmix_resnet50", backbone_weights=str(path))
    assert recipe.model_args["stride_place"] == "projection"
    with pytest.raises(UserError, match=r"train acmix_resnet50 model_args.stride_place=projection"):
        start(recipe, 5)
    given = {"pretrained": True, "model_args.pretrained_cfg_overlay": {"file": str(path), "num_classes": 3}}
    with pytest.raises(UserError, match=r"train acmix_resnet50 model_args.stride_place=projection"):
        start(small("coco-retinanet-resnet", "acmix_resnet50", **given), 5)
    assert start(replace(recipe, weights_match="partial"), 5) is not None
    moved = saved("imagenet-resnet", "acmix_resnet50", **{"model_args.stride_place": "projection"})
    assert start(replace(recipe, backbone_weights=str(moved)), 5) is not None


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_pretrained_weights_that_are_not_whole_are_refused(task: str, saved: Saved, tmp_path: Path) -> None:
    """Of a file without a description too, as timm loads it: missing and unexpected tensors are named."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved("imagenet-resnet", "conv_resnet50"))
    tensors["layer9.weight"] = tensors.pop("layer3.0.conv1.weight")
    save_file(tensors, tmp_path / "other.safetensors")
    name = {"classification": "imagenet-resnet", "detection": "coco-retinanet-resnet"}.get(task, "folder-segmentation")
    given = {"pretrained": True, "model_args.pretrained_cfg_overlay": {"file": str(tmp_path / "other.safetensors")}}
    recipe = small(name, "conv_resnet50", **given)
    with pytest.raises(UserError, match=r"1 missing: layer3.0.conv1.weight; 1 unexpected: layer9.weight"):
        start(recipe, 5)
    net = start(replace(recipe, weights_match="partial"), 5)
    found = net.state_dict() if task == "classification" else backbone_of(net)
    assert torch.equal(found["layer4.0.conv1.weight"], tensors["layer4.0.conv1.weight"])


def test_a_damaged_file_of_pretrained_weights_is_refused(saved: Saved) -> None:
    path = saved("imagenet-resnet", "conv_resnet50")
    path.write_bytes(path.read_bytes()[:1000])
    given = {"pretrained": True, "model_args.pretrained_cfg_overlay": {"file": str(path)}}
    with pytest.raises(UserError, match=r"conv_resnet50.safetensors: no safetensors file, or damaged"):
        start(small("coco-retinanet-resnet", "conv_resnet50", **given), 5)


def test_only_a_classifiers_weights_and_only_below_something(saved: Saved) -> None:
    path = str(saved("imagenet-resnet", "conv_resnet50"))
    with pytest.raises(UserError, match="a classifier takes weights="):
        small("imagenet-resnet", "conv_resnet50", backbone_weights=path)
    with pytest.raises(UserError, match="backbone_weights must be left out where pretrained says"):
        small("coco-retinanet-resnet", "conv_resnet50", backbone_weights=path, pretrained=True)
    with pytest.raises(UserError, match="no such run or weights"):
        start(small("coco-retinanet-resnet", "conv_resnet50", backbone_weights="nowhere"), 5)
