"""Test-time augmentation: what mirrored networks answer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convattn.tasks.config import TaskName
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.task import task_of
from convattn.tasks.training import prepare
from convattn.tasks.tta import MirroredObjects
from tests.tasks.test_formats import FORMATS, SETTINGS


@pytest.mark.parametrize("task_name", ["classification", "segmentation"])
def test_mirroring_an_image_mirrors_the_answer(tmp_path: Path, task_name: TaskName) -> None:
    name, settings = SETTINGS[task_name]
    data = FORMATS[task_name]["folders"](tmp_path / "data")
    recipe = load_recipe(name, {**parse_overrides(settings), "data.folder": str(data)})
    job = prepare(recipe, tmp_path)
    model, plain = task_of(recipe).mirrored(job.model).eval(), job.model.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, turned = model(images), model(images.flip(-1))
        turned = turned.flip(-1) if turned.ndim == 4 else turned
        torch.testing.assert_close(found, turned, rtol=0, atol=2e-6)
        torch.testing.assert_close(found.softmax(1).sum(1), torch.ones_like(found[:, 0]))
        assert not torch.allclose(found.softmax(1), plain(images).softmax(1), atol=1e-6)


class Found(nn.Module):
    """Finds one object at the left, whatever it sees, and another one at the right of images that are bright there."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        results = []
        for image in images:
            left = torch.tensor([[1.0, 2.0, 5.0, 6.0]])
            masks = torch.zeros(1, 1, *image.shape[-2:])
            masks[..., 2:6, 1:5] = 1
            score = torch.tensor([0.9 if image[0, 0, 0] > 0 else 0.6])
            results.append({"boxes": left, "labels": torch.tensor([1]), "scores": score, "masks": masks})
        return results


def test_objects_of_both_are_merged() -> None:
    image = torch.zeros(3, 8, 20)
    image[:, 0, 0] = 1
    (found,) = MirroredObjects(Found())([image])
    assert found["boxes"].tolist() == [[1, 2, 5, 6], [15, 2, 19, 6]]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6])
    assert found["masks"][1, 0, 2:6, 15:19].all()
    assert found["masks"].sum() == 32
    (same,) = MirroredObjects(Found())([torch.zeros(3, 8, 6)])  # the mirrored box is the same
    assert same["boxes"].tolist() == [[1, 2, 5, 6]]
