"""A trained model's answer and what it looked at: the pixels of the photograph are those of the maps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.data.classes import open_classes
from convattn.data.transforms import eval_transform
from convattn.errors import UserError
from convattn.tasks.answers import AnswerOptions
from convattn.tasks.config import Recipe
from convattn.tasks.explaining import Explained, Photo
from convattn.tasks.inference import LoadedModel
from convattn.tasks.recipes import build
from convattn.tasks.seeing import first_batch, looks
from convattn.tasks.task import task_of

OPTIONS = AnswerOptions(Path("run"))
CLASSES = ["cat", "dog", "owl"]
HALF = (0.5, 0.5, 0.5)


def photo(width: int, height: int) -> Photo:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photo.of(Image.fromarray(pixels), "photo.jpg")


def classifier(side: int = 128, model: nn.Module | None = None) -> LoadedModel:
    torch.manual_seed(0)
    data = {"image_size": side, "mean": HALF, "std": HALF}
    recipe = build(Recipe, {"model": "acmix_resnet14", "data": data}, "the test")
    options = {"num_classes": 3, "stem": "small", "channels": (8, 8, 16, 16)}
    return LoadedModel(
        model=(model or timm.create_model("acmix_resnet14", **options)).eval(),
        classes=CLASSES,
        transform=eval_transform((3, side, side), HALF, HALF),
        input_size=(3, side, side),
        name="acmix_resnet14",
        source=Path("weights.safetensors"),
        device=torch.device("cpu"),
        recipe=recipe,
    )


class TestClassification:
    def test_a_pixel_is_found_in_the_cut_out_and_back(self) -> None:
        """128 of 146 pixels are cut from the middle of the shorter side, 66 of the photograph's 75."""
        explained = Explained(classifier(), photo(300, 75), OPTIONS)
        for x, y in ((150, 37), (118, 10), (181, 70)):
            look = explained.look((x, y))
            expected = ((x + 0.5 - 150) / 65.75 + 0.5, (y + 0.5 - 37.5) / 65.75 + 0.5)
            assert look.mark == pytest.approx(expected, abs=0.03)
            assert look.pixel == (x, y)
            again = explained._to_photo(look.mark[1] * 128, look.mark[0] * 128)
            assert again == pytest.approx((x, y), abs=2)
        assert look.seen.size == (128, 128)

    def test_a_pixel_that_is_cut_off(self) -> None:
        explained = Explained(classifier(), photo(300, 75), OPTIONS)
        with pytest.raises(
            UserError, match=r"pixel 20 37 is beside the part .* take x from 11\d to 18\d and y from \d"
        ):
            explained.look((20, 37))
        with pytest.raises(UserError, match="x goes from 0 to 299, y from 0 to 74"):
            explained.look((300, 0))

    def test_the_answer_and_the_maps(self) -> None:
        explained = Explained(classifier(32), photo(40, 40), OPTIONS)
        look = explained.look()
        assert look.said.partition(",")[0] == look.cam_of == explained.rows[0]["class"]
        assert [heat.name for heat in look.attention] == [f"layer{n}.0.conv2.attention" for n in (2, 3, 4)]
        assert all(heat.values.max() == 1 for heat in look.attention)
        assert [paths.share.name for paths in look.paths] == [f"layer{n}.0.conv2" for n in (1, 2, 3, 4)]
        assert look.remark == ""
        assert look.attention_picture(look.attention[0], 64).size == (64, 64)

    def test_a_network_without_attention_says_so(self) -> None:
        net = timm.create_model("resnet10t", num_classes=3)
        look = Explained(classifier(64, net), photo(64, 64), OPTIONS).look()
        assert look.attention == look.paths == []
        assert look.cam is not None
        assert "this network has none of them, so there is Grad-CAM alone" in look.remark

    def test_an_exported_file_has_no_layers(self) -> None:
        loaded = replace(classifier(32), source=Path("model.onnx"))
        with pytest.raises(UserError, match=r"model.onnx: an exported file has no layers .*; give the run or"):
            Explained(loaded, photo(32, 32), OPTIONS)

    def test_what_a_model_cannot_take_is_said_on_the_runs_page(self) -> None:
        class Broken(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("Sizes do not match\nmore")

        found = looks(classifier(32, Broken()), photo(32, 32), Path("run"))
        assert found is not None
        assert found.cards == []
        assert "its model cannot take these images: Sizes do not match" in found.intro


class TestDetection:
    def test_padding_beside_the_image_is_cut_off(self) -> None:
        """The detector fills 40 x 50 pixels up to 64 x 64 at the bottom and at the right."""
        torch.manual_seed(0)
        arguments = {"channels": 16, "fc_channels": 16, "min_size": None, "max_size": 128, "score_threshold": 0.0}
        options = {"channels": (8, 8, 16, 16)}
        model = convattn.detection.faster_rcnn("acmix_resnet14", 3, backbone_args=options, **arguments).eval()
        recipe = build(Recipe, {"model": "acmix_resnet14", "task": "detection"}, "the test")
        loaded = replace(
            classifier(),
            model=model,
            recipe=recipe,
            transform=task_of(recipe).transform(recipe),
            category_ids=[1, 2, 3],
        )
        image = photo(50, 40)
        explained = Explained(loaded, image, AnswerOptions(Path("run"), min_score=0.0))
        assert (explained.inner, explained.found.size) == ((40, 50), (64, 64))
        look = explained.look((49, 39))
        assert look.cam is not None
        assert look.cam.covered == (40 / 64, 50 / 64)
        assert look.mark == pytest.approx((49.5 / 50, 39.5 / 40))
        assert look.seen is image.photo
        x, y = explained.look().pixel
        assert (0 <= x < 50, 0 <= y < 40) == (True, True)


class TestFirstBatch:
    def recipe(self, photos: Path, **settings: object) -> Recipe:
        data = {"folder": str(photos), "image_size": 32, "mean": HALF, "std": HALF, "workers": 0}
        return build(Recipe, {"model": "test_resnet", "batch_size": 8, "data": data, **settings}, "the test")

    def test_it_is_what_training_began_with(self, photos: Path) -> None:
        recipe, data = self.recipe(photos), open_classes(str(photos), val_fraction=0.2)
        one, again = first_batch(recipe, data), first_batch(recipe, data)
        assert one is not None
        assert one == again
        assert len(one.cards) == 8
        assert {card.said for card in one.cards} <= set(data.classes)
        assert {card.name for card in one.cards} <= {data.train.name(index) for index in range(len(data.train))}

    def test_images_that_have_gone(self, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos, tmp_path / "photos")
        recipe = self.recipe(tmp_path / "photos")
        data = open_classes(str(tmp_path / "photos"), val_fraction=0.2)
        shutil.rmtree(tmp_path / "photos")
        assert first_batch(recipe, data) is None

    def test_mixed_images_have_two_classes(self, photos: Path) -> None:
        recipe, data = self.recipe(photos, mix={"mixup": 20.0}), open_classes(str(photos), val_fraction=0.2)
        found = first_batch(recipe, data)
        assert found is not None
        assert "mixed among themselves" in found.intro
        assert any("%, " in card.said for card in found.cards)
